#include "journal/segment_log.h"

#include <chrono>
#include <utility>

#include "core/error.h"

namespace hadal::journal {

namespace {

// False on a disk with less than a segment left: there records decide for themselves whether they
// fit.
bool try_preallocate(WritableFile& file, std::uint64_t nbytes) {
  try {
    file.preallocate(nbytes);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

SegmentLog::SegmentLog(FileSystem& fs, Path directory, const Uuid& log, std::uint64_t next_segment,
                       Lsn next_lsn, std::uint64_t preallocate)
    : fs_(fs),
      directory_(std::move(directory)),
      preallocate_(preallocate),
      next_segment_(next_segment),
      next_lsn_(next_lsn) {
  header_.log = log;
}

void SegmentLog::start_segment(const TableRecord& open_streams) {
  finish();
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  header_.number = next_segment_++;
  header_.first_lsn = next_lsn_;
  header_.created_ns =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  file_ = fs_.create(directory_ / segment_name(header_.number));
  if (preallocate_ > 0 && !try_preallocate(*file_, preallocate_)) preallocate_ = 0;
  const auto head = encode(header_);
  buffer_.assign(head.begin(), head.end());
  size_ = buffer_.size();
  const std::vector<PendingRecord> table{{RecordType::table, encode(open_streams)}};
  (void)add(table);
  first_free_ = size_;
  write();
  file_->sync();
  fs_.sync_directory(directory_);
}

SegmentLog::Span SegmentLog::add(std::span<const PendingRecord> commit, std::uint8_t flags) {
  Span span{{header_.number, size_}, {}};
  const std::size_t before = buffer_.size();
  for (std::size_t i = 0; i < commit.size(); ++i) {
    const std::uint8_t more = i + 1 < commit.size() ? kCommitContinues : 0;
    append_record(buffer_, header_, commit[i].type, flags | more, next_lsn_++, commit[i].payload);
  }
  size_ += buffer_.size() - before;
  span.end = {header_.number, size_};
  return span;
}

void SegmentLog::write() {
  if (buffer_.empty()) return;
  file_->append(buffer_);
  bytes_written_ += buffer_.size();
  buffer_.clear();
}

void SegmentLog::sync() {
  file_->sync_data();
}

void SegmentLog::finish() {
  if (!file_) return;
  write();
  file_->truncate(size_);
  file_->sync();
  file_->close();
  file_.reset();
}

}  // namespace hadal::journal
