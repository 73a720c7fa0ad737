// What keeps the log from growing for ever.
#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "journal/log_thread.h"

namespace hadal::journal {

void LogThread::maintenance() {
  if (failed_) return forget_expired();
  if (log_.has_records() && now_unix() - segment_started_ >= options_.segment_age.count()) {
    rotate();
  }
  forget_expired();
  copy_old_streams();
  delete_segments();
}

void LogThread::forget_expired() {
  const std::int64_t limit = now_unix() - options_.retention.count();
  const std::lock_guard lock(mutex_);
  for (auto it = index_.begin(); it != index_.end();) {
    const StreamInfo& info = it->second.info;
    if (info.closed() && info.closed_at <= limit) {
      names_.erase(info.name);
      it = index_.erase(it);
    } else {
      ++it;
    }
  }
}

void LogThread::copy_old_streams() {
  for (auto& [local, live] : live_) {
    if (live.end == Position{} || log_.segment() - live.begin.segment <= options_.max_open_age) {
      continue;
    }
    const Stream stream = read_stream(fs_, directory_, local, live.begin, live.end);
    if (stream.n_tokens != live.n_tokens) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("stream \"{}\" has {} tokens in the journal, where {} were written",
                              live.name, stream.n_tokens, live.n_tokens));
    }
    const SegmentLog::Span span = log_.add(copy_records(stream), kCopy);
    log_.write();
    sync();  // before the segments that it replaces go
    live.begin = span.begin;
    live.end = span.end;
    const std::lock_guard lock(mutex_);
    Entry& entry = index_.at(local);
    entry.begin = span.begin;
    entry.end = span.end;
    stats_.copied_streams += 1;
  }
}

void LogThread::delete_segments() {
  std::uint64_t needed = log_.segment();
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [local, entry] : index_) {
      if (entry.end != Position{}) needed = std::min(needed, entry.begin.segment);
    }
  }
  if (segments_.empty() || segments_.front() >= needed) return;
  // Somebody reads: next time.
  const std::unique_lock files(files_mutex_, std::try_to_lock);
  if (!files) return;
  while (!segments_.empty() && segments_.front() < needed) {
    fs_.remove(directory_ / segment_name(segments_.front()));
    // One after the other, so that no crash leaves a hole.
    fs_.sync_directory(directory_);
    segments_.erase(segments_.begin());
    const std::lock_guard lock(mutex_);
    stats_.deleted_segments += 1;
    stats_.segments = segments_.size();
  }
}

}  // namespace hadal::journal
