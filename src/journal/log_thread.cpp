#include "journal/log_thread.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <future>
#include <utility>

#include "core/error.h"

namespace hadal::journal {

namespace {

constexpr std::chrono::seconds kMaintenancePeriod{5};

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

// Of a stream that has just been opened.
StreamInfo info_of(const OpenRecord& open, LocalId local) {
  return {.name = open.name,
          .local = local,
          .api = open.api,
          .response_id = open.response_id,
          .principal = open.principal,
          .created = open.created,
          .resumable = open.resumable,
          .request_sha256 = open.request_sha256,
          .fingerprint = open.fingerprint,
          .choices = std::vector<StreamInfo::Choice>(open.n_choices)};
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

LogThread::LogThread(FileSystem& fs, Path directory, WriterOptions options,
                     const Recovery& recovered)
    : fs_(fs),
      directory_(std::move(directory)),
      options_(std::move(options)),
      directory_lock_(recovered.lock),
      log_(fs, directory_, recovered.log, recovered.next_segment, recovered.next_lsn,
           options_.segment_bytes) {
  adopt(recovered);
  log_.start_segment(table());
  segments_.push_back(log_.segment());
  segment_started_ = now_unix();
  stats_.segments = segments_.size();
  last_sync_ = Clock::now();
  next_maintenance_ = last_sync_;
  for (const auto& [local, stream] : recovered.streams) {
    if (stream.closed() || (stream.fault.empty() && !stream.cancelled)) continue;
    const bool lost = !stream.fault.empty();
    submit({.task = AbandonTask{.local = local,
                                .reason = lost ? CloseReason::error : CloseReason::cancelled,
                                .detail = lost ? stream.fault : *stream.cancelled}});
  }
  thread_ = std::thread([this] { run(); });
}

LogThread::~LogThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void LogThread::adopt(const Recovery& recovered) {
  next_local_ = recovered.next_local;
  for (const Recovery::Segment& segment : recovered.segments) {
    segments_.push_back(segment.header.number);
  }
  for (const auto& [local, stream] : recovered.streams) {
    const OpenRecord& open = stream.open;
    Entry& entry = index_[local];
    entry.begin = stream.begin;
    entry.end = stream.end;
    entry.info = info_of(open, local);
    entry.info.choices.clear();
    entry.info.n_tokens = stream.n_tokens;
    entry.info.closed_at = stream.closed() ? stream.closed_at() : 0;
    for (const ChoiceState& choice : stream.choices) {
      StreamInfo::Choice& info = entry.info.choices.emplace_back();
      info.n_tokens = choice.n_tokens;
      if (!choice.close) continue;
      info.close = choice.close->reason;
      info.detail = choice.close->detail;
    }
    names_[open.name] = local;
    if (stream.closed()) continue;
    Live& live = live_[local];
    live.name = open.name;
    live.keep_logprobs = open.keep_logprobs;
    live.n_tokens = stream.n_tokens;
    live.begin = stream.begin;
    live.end = stream.end;
    for (const ChoiceState& choice : stream.choices) {
      live.choices.push_back({.tokens = choice.tokens, .close = choice.close});
    }
  }
}

// --- other threads ---

std::optional<LocalId> LogThread::open(const OpenRecord& record, std::vector<std::byte> payload,
                                       std::function<void()> written) {
  LocalId local = 0;
  {
    // Named and handed in at once: whoever finds the stream can wait for it.
    const std::lock_guard lock(mutex_);
    const auto [it, is_new] = names_.try_emplace(record.name, next_local_);
    if (!is_new) return std::nullopt;
    local = next_local_++;
    index_[local].info = info_of(record, local);
    set_local(payload, local);
    stats_.pending_commits += 1;
    queue_.push_back({.task = OpenTask{.local = local,
                                       .keep_logprobs = record.keep_logprobs,
                                       .n_choices = record.n_choices,
                                       .name = record.name,
                                       .payload = std::move(payload)},
                      .done = std::move(written)});
  }
  wake_.notify_one();
  return local;
}

void LogThread::submit(Work work) {
  {
    const std::lock_guard lock(mutex_);
    stats_.pending_tokens += work.n_tokens;
    stats_.pending_commits += 1;
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void LogThread::submit_and_wait(decltype(Work::task) task) {
  // Shared: who waits may be gone before set_value() has returned.
  const auto done = std::make_shared<std::promise<void>>();
  submit({.task = std::move(task), .done = [done] { done->set_value(); }});
  done->get_future().wait();
}

std::string LogThread::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

WriterStats LogThread::stats() const {
  const std::lock_guard lock(mutex_);
  WriterStats stats = stats_;
  for (const auto& [local, entry] : index_) {
    ++(entry.info.closed() ? stats.closed_streams : stats.open_streams);
  }
  return stats;
}

std::optional<StreamInfo> LogThread::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto it = names_.find(name);
  if (it == names_.end()) return std::nullopt;
  return index_.at(it->second).info;
}

std::vector<StreamInfo> LogThread::streams() const {
  const std::lock_guard lock(mutex_);
  std::vector<StreamInfo> all;
  all.reserve(index_.size());
  for (const auto& [local, entry] : index_) all.push_back(entry.info);
  return all;
}

std::optional<LocalId> LogThread::local_of(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto it = names_.find(name);
  return it == names_.end() ? std::nullopt : std::optional(it->second);
}

std::optional<Stream> LogThread::read(const std::string& name) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    // Before the index is asked, so that the segments it names are still there.
    const std::shared_lock files(files_mutex_);
    LocalId local = 0;
    Position begin, end;
    {
      const std::lock_guard lock(mutex_);
      const auto it = names_.find(name);
      if (it == names_.end()) return std::nullopt;
      const Entry& entry = index_.at(it->second);
      local = it->second;
      begin = entry.begin;
      end = entry.end;
    }
    if (end != Position{}) return read_stream(fs_, directory_, local, begin, end);
    // Its OPEN is on the way.
    if (attempt == 0) submit_and_wait(BarrierTask{});
  }
  return std::nullopt;
}

// --- the log's thread ---

void LogThread::run() {
  std::deque<Work> batch;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      auto deadline = next_maintenance_;
      if (dirty_ && options_.sync.kind == SyncPolicy::Kind::interval) {
        deadline = std::min(deadline, last_sync_ + options_.sync.interval);
      }
      wake_.wait_until(lock, deadline, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty() && stopping_) break;
      batch.swap(queue_);
    }
    process(batch);
    batch.clear();
  }
  if (failed_) return;
  try {
    log_.finish();
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

void LogThread::process(std::deque<Work>& batch) {
  n_taken_ = 0;
  if (!failed_) {
    try {
      log_batch(batch);
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }
  // A failed log still knows which streams there are, and which have ended.
  for (; n_taken_ < batch.size(); ++n_taken_) (void)records_of(batch[n_taken_]);
  update_index(!failed_);
  publish(batch);
  // What needs time comes after what was waiting to be shown.
  try {
    const bool overdue = dirty_ && options_.sync.kind == SyncPolicy::Kind::interval &&
                         Clock::now() - last_sync_ >= options_.sync.interval;
    if (!failed_ && overdue) sync();
    const bool asked = std::any_of(batch.begin(), batch.end(), [](const Work& work) {
      return std::holds_alternative<MaintainTask>(work.task);
    });
    if (asked || Clock::now() >= next_maintenance_) {
      next_maintenance_ = Clock::now() + kMaintenancePeriod;
      maintenance();
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
  for (const Work& work : batch) {
    if (std::holds_alternative<MaintainTask>(work.task)) work.done();
  }
}

void LogThread::publish(const std::deque<Work>& batch) {
  std::uint64_t n_tokens = 0;
  for (const Work& work : batch) n_tokens += work.n_tokens;
  {
    const std::lock_guard lock(mutex_);
    stats_.pending_tokens -= n_tokens;
    stats_.pending_commits -= batch.size();
    (failed_ ? stats_.unlogged_tokens : stats_.logged_tokens) += n_tokens;
  }
  for (const Work& work : batch) {
    if (work.done && !std::holds_alternative<MaintainTask>(work.task)) work.done();
  }
}

void LogThread::log_batch(std::deque<Work>& batch) {
  bool must_sync = options_.sync.kind == SyncPolicy::Kind::step;
  const auto begin = Clock::now();
  const std::uint64_t before = log_.bytes_written();
  for (Work& work : batch) {
    if (log_.size() >= options_.segment_bytes && log_.has_records()) {
      rotate();
    }
    if (const auto* barrier = std::get_if<BarrierTask>(&work.task)) must_sync |= barrier->sync;
    ++n_taken_;
    const std::set<LocalId> earlier = std::exchange(touched_, {});
    const std::vector<PendingRecord> records = records_of(work);
    if (!records.empty()) {
      const SegmentLog::Span span = log_.add(records);
      for (const LocalId local : touched_) {
        Live& live = live_.at(local);
        if (live.end == Position{}) live.begin = span.begin;
        live.end = span.end;
      }
    }
    touched_.insert(earlier.begin(), earlier.end());
  }
  log_.write();
  if (log_.bytes_written() == before) {
    if (must_sync && dirty_) sync();
    return;
  }
  dirty_ = true;
  const double seconds = seconds_since(begin);
  {
    const std::lock_guard lock(mutex_);
    stats_.appends += 1;
    stats_.append_seconds += seconds;
    stats_.bytes = log_.bytes_written();
  }
  if (options_.on_append) options_.on_append(seconds);
  if (must_sync) sync();
}

std::vector<PendingRecord> LogThread::records_of(Work& work) {
  std::vector<PendingRecord> records;
  std::visit(Overloaded{[&](OpenTask& open) {
                          Live& live = live_[open.local];
                          live.name = std::move(open.name);
                          live.keep_logprobs = open.keep_logprobs;
                          live.choices.resize(open.n_choices);
                          touched_.insert(open.local);
                          records.push_back({RecordType::open, std::move(open.payload)});
                        },
                        [&](StepTask& step) {
                          add_tokens(step, records);
                          for (const ChoiceEnd& end : step.ends) end_choice(end, records);
                        },
                        [&](CancelRecord& cancel) {
                          if (!live_.contains(cancel.local)) return;
                          touched_.insert(cancel.local);
                          records.push_back({RecordType::cancel, encode(cancel)});
                        },
                        [&](SnapRecord& snap) {
                          if (!live_.contains(snap.local)) return;
                          touched_.insert(snap.local);
                          records.push_back({RecordType::snap, encode(snap)});
                        },
                        [&](AbandonTask& abandon) {
                          const auto it = live_.find(abandon.local);
                          if (it == live_.end()) return;
                          for (std::size_t c = 0; c < it->second.choices.size(); ++c) {
                            end_choice({.local = abandon.local,
                                        .choice = static_cast<std::uint16_t>(c),
                                        .reason = abandon.reason,
                                        .detail = abandon.detail},
                                       records);
                          }
                        },
                        [](BarrierTask&) {}, [](MaintainTask&) {}},
             work.task);
  return records;
}

void LogThread::add_tokens(StepTask& step, std::vector<PendingRecord>& records) {
  StepRecord record;
  record.tokens.reserve(step.tokens.size());
  Live* live = nullptr;
  LocalId present = 0;
  for (TokenEntry& entry : step.tokens) {
    if (entry.local != present) {
      const auto it = live_.find(entry.local);
      live = it == live_.end() ? nullptr : &it->second;
      present = entry.local;
    }
    if (live == nullptr || entry.choice >= live->choices.size()) continue;
    Live::Choice& choice = live->choices[entry.choice];
    if (choice.close) continue;
    if (entry.index < choice.tokens.size() && choice.tokens[entry.index] == entry.token) continue;
    if (entry.index != choice.tokens.size()) {
      if (failed_) continue;
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("the engine handed token {} of stream \"{}\", choice {}, to the "
                              "journal, where token {} was due",
                              entry.index, live->name, entry.choice, choice.tokens.size()));
    }
    choice.tokens.push_back(entry.token);
    ++live->n_tokens;
    touched_.insert(entry.local);
    if (!live->keep_logprobs) {
      entry.logprob.reset();
      entry.top.clear();
    }
    record.tokens.push_back(std::move(entry));
  }
  if (!record.tokens.empty()) records.push_back({RecordType::step, encode(record)});
}

void LogThread::end_choice(const ChoiceEnd& end, std::vector<PendingRecord>& records) {
  const auto it = live_.find(end.local);
  if (it == live_.end() || end.choice >= it->second.choices.size()) return;
  Live::Choice& choice = it->second.choices[end.choice];
  if (choice.close) return;
  choice.close = CloseRecord{.local = end.local,
                             .choice = end.choice,
                             .reason = end.reason,
                             .n_tokens = static_cast<std::uint32_t>(choice.tokens.size()),
                             .closed = now_unix(),
                             .tokens_sha256 = digest_of(choice.tokens),
                             .detail = end.detail};
  touched_.insert(end.local);
  records.push_back({RecordType::close, encode(*choice.close)});
}

void LogThread::fail(const std::string& sentence) {
  failed_ = true;
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) {
    failure_ = fmt::format("the journal in {} has failed and logs nothing any more: {}",
                           directory_.string(), sentence);
  }
}

void LogThread::sync() {
  const auto begin = Clock::now();
  log_.sync();
  dirty_ = false;
  last_sync_ = Clock::now();
  const double seconds = std::chrono::duration<double>(last_sync_ - begin).count();
  {
    const std::lock_guard lock(mutex_);
    stats_.syncs += 1;
    stats_.sync_seconds += seconds;
  }
  if (options_.on_sync) options_.on_sync(seconds);
}

void LogThread::update_index(bool on_disk) {
  const std::lock_guard lock(mutex_);
  for (const LocalId local : touched_) {
    const auto it = live_.find(local);
    if (it == live_.end()) continue;
    const Live& live = it->second;
    Entry& entry = index_.at(local);
    if (on_disk) {
      entry.begin = live.begin;
      entry.end = live.end;
    }
    entry.info.n_tokens = live.n_tokens;
    bool open = false;
    std::int64_t closed_at = 0;
    for (std::size_t c = 0; c < live.choices.size(); ++c) {
      const Live::Choice& choice = live.choices[c];
      StreamInfo::Choice& info = entry.info.choices[c];
      info.n_tokens = static_cast<std::uint32_t>(choice.tokens.size());
      open |= !choice.close;
      if (!choice.close) continue;
      info.close = choice.close->reason;
      info.detail = choice.close->detail;
      closed_at = std::max(closed_at, choice.close->closed);
    }
    if (open) continue;
    entry.info.closed_at = closed_at;
    live_.erase(it);
  }
  touched_.clear();
}

TableRecord LogThread::table() const {
  TableRecord table;
  for (const auto& [local, live] : live_) {
    const bool open = std::any_of(live.choices.begin(), live.choices.end(),
                                  [](const Live::Choice& choice) { return !choice.close; });
    if (!open) continue;
    TableRecord::Entry& entry = table.streams.emplace_back();
    entry.local = local;
    entry.name = live.name;
    for (const Live::Choice& choice : live.choices) {
      entry.n_tokens.push_back(static_cast<std::uint32_t>(choice.tokens.size()));
    }
  }
  return table;
}

void LogThread::rotate() {
  log_.start_segment(table());
  segments_.push_back(log_.segment());
  segment_started_ = now_unix();
  next_maintenance_ = Clock::now();
  dirty_ = false;
  last_sync_ = next_maintenance_;
  const std::lock_guard lock(mutex_);
  stats_.segments = segments_.size();
  stats_.syncs += 2;
}

std::int64_t LogThread::now_unix() const {
  if (options_.unix_seconds) return options_.unix_seconds();
  return std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
}

}  // namespace hadal::journal
