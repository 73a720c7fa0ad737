// Who gets into the queue, and who is sent away until later.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "protocol/api.h"
#include "server/auth.h"
#include "server/http.h"

namespace hadal::server {

struct AdmissionOptions {
  std::int64_t max_queue_requests = 256;
  std::int64_t max_queue_tokens = 4'000'000;  // of prompts
};

// A refusal with headers: Retry-After and x-ratelimit-*.
class Refusal : public protocol::ApiException {
 public:
  Refusal(protocol::ApiError refused, Headers refusal_headers)
      : ApiException(std::move(refused)), headers(std::move(refusal_headers)) {}
  Headers headers;
};

class Admission;

// One request's place; gives it back at the latest when it is destroyed. Any thread.
class Ticket {
 public:
  Ticket(Admission& admission, ApiKey& key, std::int64_t n_prompt_tokens);
  ~Ticket() { finished(); }
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  void started();   // left the queue
  void finished();  // left
  void drew(std::int64_t n_tokens);

 private:
  Admission& admission_;
  ApiKey& key_;
  const std::int64_t n_prompt_tokens_;
  std::atomic<bool> queued_{true}, running_{true};
};

// Counts what waits. Must outlive its tickets, as must the keys.
class Admission {
 public:
  explicit Admission(AdmissionOptions options) : options_(options) {}

  // Throws Refusal (429) with the time after which it is worth trying again.
  [[nodiscard]] std::shared_ptr<Ticket> admit(ApiKey& key, std::int64_t n_prompt_tokens);
  // For a request that an earlier process had admitted: it is not asked again.
  [[nodiscard]] std::shared_ptr<Ticket> readmit(ApiKey& key, std::int64_t n_prompt_tokens);
  // x-ratelimit-*, for a key that has limits.
  [[nodiscard]] static Headers rate_headers(ApiKey& key);

  [[nodiscard]] std::int64_t n_queued() const { return n_queued_; }
  [[nodiscard]] std::int64_t n_refused() const { return n_refused_; }

 private:
  friend class Ticket;
  [[nodiscard]] int retry_after() const;
  [[noreturn]] void refuse(ApiKey& key, std::string message, int seconds);
  void count_start();

  const AdmissionOptions options_;
  std::mutex mutex_;  // checks and counts are one step
  std::atomic<std::int64_t> n_queued_{0}, n_queued_tokens_{0}, n_refused_{0};
  // Requests started a second, smoothed; what a queue drains by.
  std::atomic<double> start_rate_{0}, last_start_{0};
};

// Seconds of a steady clock.
[[nodiscard]] double steady_seconds();

}  // namespace hadal::server
