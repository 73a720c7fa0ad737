#include "server/stream_registry.h"

#include <algorithm>

namespace hadal::server {

namespace {

double seconds_since(SteadyClock::time_point then) {
  return std::chrono::duration<double>(SteadyClock::now() - then).count();
}

}  // namespace

bool StreamRegistry::insert(const std::shared_ptr<LiveStream>& stream) {
  const std::lock_guard lock(mutex_);
  const StreamInfo& info = stream->info();
  if (!streams_.emplace(info.id, stream).second) return false;
  by_response_[info.plan->identity.id] = info.id;
  ++n_unfinished_;
  return true;
}

std::shared_ptr<LiveStream> StreamRegistry::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  return found == streams_.end() ? nullptr : found->second;
}

std::shared_ptr<LiveStream> StreamRegistry::find_response(const std::string& response_id) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_response_.find(response_id);
  if (found == by_response_.end()) return nullptr;
  const auto stream = streams_.find(found->second);
  return stream == streams_.end() ? nullptr : stream->second;
}

void StreamRegistry::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end()) return;
  by_response_.erase(found->second->info().plan->identity.id);
  const bool was_kept = std::erase_if(kept_, [&](const Kept& kept) {
                          if (kept.id != id) return false;
                          kept_tokens_ -= kept.n_tokens;
                          return true;
                        }) > 0;
  if (!was_kept) --n_unfinished_;
  streams_.erase(found);
}

void StreamRegistry::retire(const std::shared_ptr<LiveStream>& stream, bool keep) {
  const std::string& id = stream->info().id;
  if (!keep) return remove(id);
  const std::int64_t n_tokens = stream->snapshot().n_tokens;
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second != stream) return;
  --n_unfinished_;
  kept_.push_back({SteadyClock::now(), stream, id, n_tokens});
  kept_tokens_ += n_tokens;
  while (kept_.size() > options_.max_kept || kept_tokens_ > options_.max_kept_tokens) {
    forget_oldest();
  }
}

void StreamRegistry::forget_oldest() {
  const Kept& oldest = kept_.front();
  kept_tokens_ -= oldest.n_tokens;
  const auto found = streams_.find(oldest.id);
  if (found != streams_.end()) {
    by_response_.erase(found->second->info().plan->identity.id);
    streams_.erase(found);
  }
  kept_.pop_front();
}

std::vector<std::shared_ptr<LiveStream>> StreamRegistry::unfinished() const {
  std::vector<std::shared_ptr<LiveStream>> out;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, stream] : streams_) out.push_back(stream);
  }
  std::erase_if(out, [](const auto& stream) { return stream->snapshot().finished; });
  std::ranges::sort(out, {}, [](const auto& s) { return s->snapshot().times.arrival; });
  return out;
}

std::size_t StreamRegistry::n_unfinished() const {
  const std::lock_guard lock(mutex_);
  return n_unfinished_;
}

void StreamRegistry::tick() {
  std::vector<std::shared_ptr<LiveStream>> all;
  {
    const std::lock_guard lock(mutex_);
    while (!kept_.empty() && seconds_since(kept_.front().since) > options_.retention_s) {
      forget_oldest();
    }
    all.reserve(streams_.size());
    for (const auto& [id, stream] : streams_) all.push_back(stream);
  }
  for (const auto& stream : all) {
    const LiveStream::Snapshot now = stream->snapshot();
    if (now.finished && now.n_readers == 0) continue;
    stream->tick(options_.patience);
    if (!now.finished && now.n_readers == 0 && now.detached_since &&
        seconds_since(*now.detached_since) > options_.detached_ttl_s) {
      stream->cancel();
    }
  }
}

}  // namespace hadal::server
