// The responses that are being made, and those that are kept for whoever comes back.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/live_stream.h"

namespace hadal::server {

struct RegistryOptions {
  double detached_ttl_s = 600;  // of an unfinished stream without a reader
  double retention_s = 3600;    // of a finished one
  std::size_t max_kept = 4096;  // finished ones in memory; the journal has them all
  std::int64_t max_kept_tokens = 4'000'000;
  LiveStream::Patience patience;
};

class StreamRegistry {
 public:
  explicit StreamRegistry(RegistryOptions options) : options_(options) {}

  // False when the name is taken.
  [[nodiscard]] bool insert(const std::shared_ptr<LiveStream>& stream);
  // Null when there is none.
  [[nodiscard]] std::shared_ptr<LiveStream> find(const std::string& id) const;
  [[nodiscard]] std::shared_ptr<LiveStream> find_response(const std::string& response_id) const;
  void remove(const std::string& id);
  // It is finished: kept for a while (`keep`), or forgotten.
  void retire(const std::shared_ptr<LiveStream>& stream, bool keep);

  [[nodiscard]] std::vector<std::shared_ptr<LiveStream>> unfinished() const;  // oldest first
  [[nodiscard]] std::size_t n_unfinished() const;
  // Keep-alives, patience, and the end of what nobody waits for; once a second.
  void tick();

 private:
  void forget_oldest();  // under mutex_

  const RegistryOptions options_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<LiveStream>> streams_;
  std::unordered_map<std::string, std::string> by_response_;  // -> stream id
  struct Kept {
    SteadyClock::time_point since;
    std::weak_ptr<LiveStream> stream;
    std::string id;
    std::int64_t n_tokens;
  };
  std::deque<Kept> kept_;  // the oldest first
  std::int64_t kept_tokens_ = 0;
  std::size_t n_unfinished_ = 0;
};

}  // namespace hadal::server
