// Files of records: headers, framing, and reading until something is not a record.
// Byte by byte: docs/formats/journal.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "journal/record.h"

namespace hadal::journal {

using Uuid = std::array<std::byte, 16>;

inline constexpr std::uint64_t kSegmentHeaderBytes = 64;
inline constexpr std::uint64_t kRecordHeaderBytes = 24;
inline constexpr std::uint32_t kFormatVersion = 1;

struct SegmentHeader {
  std::uint64_t number = 0;
  Lsn first_lsn = 1;
  Uuid log{};                    // the same in all segments of a log
  std::uint64_t created_ns = 0;  // unix
  bool operator==(const SegmentHeader&) const = default;
};

[[nodiscard]] std::array<std::byte, kSegmentHeaderBytes> encode(const SegmentHeader& header);

// What is no header of this format comes back as the sentence that says why.
struct HeaderOrReason {
  std::optional<SegmentHeader> header;
  std::string reason;
};
[[nodiscard]] HeaderOrReason decode_header(std::span<const std::byte> bytes);

// "00000000000000000042.seg" and back; nothing for other names.
[[nodiscard]] std::string segment_name(std::uint64_t number);
[[nodiscard]] std::optional<std::uint64_t> segment_number(const std::string& name);

// A place in the log.
struct Position {
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;
  auto operator<=>(const Position&) const = default;
};

struct RecordView {
  RecordType type{};
  std::uint8_t flags = 0;
  Lsn lsn = 0;
  std::uint64_t begin = 0, end = 0;  // in the segment
  std::span<const std::byte> payload;
};

// Appends one framed record to `out`. The checksum is seeded with the log and the segment, so that
// a record is none anywhere else.
void append_record(std::vector<std::byte>& out, const SegmentHeader& header, RecordType type,
                   std::uint8_t flags, Lsn lsn, std::span<const std::byte> payload);

// Walks the records in `bytes`, which are the segment's from `offset` (8-aligned) on.
class SegmentScanner {
 public:
  SegmentScanner(const SegmentHeader& header, std::span<const std::byte> bytes,
                 std::uint64_t offset, Lsn next_lsn);

  // Nothing at the end, and from the first place on that holds no valid record with the next lsn.
  [[nodiscard]] std::optional<RecordView> next();

  // Once next() has returned nothing:
  enum class Tail : std::uint8_t {
    clean,  // the file ends here, or only zeros follow: space that was never written
    torn    // something lies here, and it is no record
  };
  [[nodiscard]] Tail tail() const { return tail_; }
  [[nodiscard]] const std::string& reason() const { return reason_; }  // of torn: what is wrong
  [[nodiscard]] std::uint64_t offset() const { return offset_; }       // behind the last record
  [[nodiscard]] Lsn next_lsn() const { return next_lsn_; }

  // Goes on at the next place behind a torn one that holds a valid record with this lsn or a later
  // one. False when there is none. For repairs only.
  [[nodiscard]] bool skip_damage();

 private:
  [[nodiscard]] std::optional<RecordView> record_at(std::uint64_t offset, bool any_later_lsn);
  [[nodiscard]] std::span<const std::byte> from(std::uint64_t offset) const {
    return bytes_.subspan(offset - base_);
  }

  std::uint32_t seed_;
  std::span<const std::byte> bytes_;
  std::uint64_t base_, offset_;
  Lsn next_lsn_;
  Tail tail_ = Tail::clean;
  std::string reason_;
};

}  // namespace hadal::journal
