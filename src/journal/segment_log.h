// The writing end of the segments: one thread's, no policy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/file.h"
#include "journal/recovery.h"
#include "journal/segment.h"

namespace hadal::journal {

class SegmentLog {
 public:
  // Nothing is on disk before start_segment(). `preallocate` bytes are taken for each segment.
  SegmentLog(FileSystem& fs, Path directory, const Uuid& log, std::uint64_t next_segment,
             Lsn next_lsn, std::uint64_t preallocate);

  // Ends the present segment as finish() does, and begins the next with a TABLE. Durable when it
  // returns. Everything here throws io as the file system does; then the log is at its end.
  void start_segment(const TableRecord& open_streams);

  struct Span {
    Position begin, end;
  };
  // Frames one commit into the buffer: all of it counts, or nothing.
  [[nodiscard]] Span add(std::span<const PendingRecord> commit, std::uint8_t flags = 0);
  void write();  // the buffer, in one write
  void sync();
  // Writes, cuts the file behind its last record, syncs and closes.
  void finish();

  [[nodiscard]] std::uint64_t segment() const { return header_.number; }
  [[nodiscard]] std::uint64_t size() const { return size_; }  // with what is in the buffer
  [[nodiscard]] std::uint64_t created_ns() const { return header_.created_ns; }
  [[nodiscard]] bool has_records() const { return size_ > first_free_; }        // besides the TABLE
  [[nodiscard]] std::uint64_t bytes_written() const { return bytes_written_; }  // to all segments
  [[nodiscard]] Lsn next_lsn() const { return next_lsn_; }

 private:
  FileSystem& fs_;
  Path directory_;
  std::uint64_t preallocate_;
  SegmentHeader header_;
  std::uint64_t next_segment_;
  Lsn next_lsn_;
  std::unique_ptr<WritableFile> file_;
  std::vector<std::byte> buffer_;
  std::uint64_t size_ = 0, first_free_ = 0, bytes_written_ = 0;
};

}  // namespace hadal::journal
