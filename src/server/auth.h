// Who may ask, and how much.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "server/http.h"

namespace hadal::server {

// What one key may use; unset is unlimited.  Source: serving.md §4.11.
struct KeyLimits {
  std::optional<std::int64_t> concurrent = {};  // requests admitted and not finished
  std::optional<std::int64_t> queued = {};      // of those, without a first token
  std::optional<std::int64_t> input_tokens_per_minute = {}, output_tokens_per_minute = {};
  std::optional<std::int64_t> max_context = {}, max_output = {};
  std::int32_t max_priority = 0;
  std::vector<std::string> models = {};  // empty: all
};

// Refills with time. May be overdrawn by the request that empties it, which then waits longer:
// nobody knows beforehand how long an answer gets.
class TokenBucket {
 public:
  explicit TokenBucket(std::int64_t per_minute)
      : per_minute_(static_cast<double>(per_minute)), level_(per_minute_) {}
  [[nodiscard]] double level(double now_seconds);
  void take(double n, double now_seconds);
  // Until there is something again.
  [[nodiscard]] double seconds_to_refill(double now_seconds);
  [[nodiscard]] double capacity() const { return per_minute_; }

 private:
  const double per_minute_;
  std::mutex mutex_;
  double level_, at_ = -1;
};

struct ApiKey {
  ApiKey(std::string key_name, std::string key_secret, KeyLimits key_limits);
  const std::string name, secret;
  const KeyLimits limits;
  // What it uses now.
  std::atomic<std::int64_t> n_running{0}, n_queued{0};
  std::unique_ptr<TokenBucket> input, output;  // where limited
};

// The keys that are accepted. Without any, everybody is the same anonymous key.
class KeyRing {
 public:
  KeyRing();
  void add(std::string name, std::string secret, KeyLimits limits = {});
  // {"keys": [{"name": "team-a", "key": "sk-...", "concurrent": 8, "queued": 16,
  //   "input_tokens_per_minute": 100000, "output_tokens_per_minute": 20000, "max_context": 32768,
  //   "max_output": 4096, "priority": 1, "models": ["..."]}]}
  // Throws not_found, or corrupt_data that names the entry.
  void add_file(const Path& file);
  [[nodiscard]] bool empty() const { return keys_.empty(); }

  // By "Authorization: Bearer KEY" or "x-api-key: KEY"; null when there is no such key. Compares
  // with every key, in constant time.
  [[nodiscard]] ApiKey* find(const HttpRequest& request) const;
  // The key of that name, "" for everybody's; null when it is not among them.
  [[nodiscard]] ApiKey* by_name(const std::string& name) const;

 private:
  std::vector<std::unique_ptr<ApiKey>> keys_;
  std::unique_ptr<ApiKey> anonymous_;
};

}  // namespace hadal::server
