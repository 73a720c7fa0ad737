#include "server/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace hadal::server {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Ticket::Ticket(Admission& admission, ApiKey& key, std::int64_t n_prompt_tokens)
    : admission_(admission), key_(key), n_prompt_tokens_(n_prompt_tokens) {
  ++admission_.n_queued_;
  admission_.n_queued_tokens_ += n_prompt_tokens_;
  ++key_.n_queued;
  ++key_.n_running;
}

void Ticket::started() {
  if (!queued_.exchange(false)) return;
  --admission_.n_queued_;
  admission_.n_queued_tokens_ -= n_prompt_tokens_;
  --key_.n_queued;
  admission_.count_start();
}

void Ticket::finished() {
  started();
  if (running_.exchange(false)) --key_.n_running;
}

void Ticket::drew(std::int64_t n_tokens) {
  if (key_.output) key_.output->take(static_cast<double>(n_tokens), steady_seconds());
}

void Admission::count_start() {
  const double now = steady_seconds(), before = last_start_.exchange(now);
  if (before <= 0) return;
  constexpr double kSmooth = 0.2;
  const double rate = 1 / std::max(1e-3, now - before);
  start_rate_ = (1 - kSmooth) * start_rate_ + kSmooth * rate;
}

int Admission::retry_after() const {
  const double rate = start_rate_;
  const double wait = rate > 0 ? static_cast<double>(n_queued_) / rate : 5.0;
  return static_cast<int>(std::clamp(std::ceil(wait), 1.0, 60.0));
}

void Admission::refuse(ApiKey& key, std::string message, int seconds) {
  ++n_refused_;
  Headers headers = rate_headers(key);
  headers.emplace_back("Retry-After", std::to_string(std::max(1, seconds)));
  throw Refusal({.status = 429, .type = "rate_limit_error", .message = std::move(message)},
                std::move(headers));
}

std::shared_ptr<Ticket> Admission::admit(ApiKey& key, std::int64_t n_prompt_tokens) {
  const std::lock_guard lock(mutex_);
  const KeyLimits& limits = key.limits;
  if (limits.concurrent && key.n_running >= *limits.concurrent) {
    refuse(key,
           fmt::format("this key may have {} requests at once, and has them", *limits.concurrent),
           retry_after());
  }
  if (limits.queued && key.n_queued >= *limits.queued) {
    refuse(key, fmt::format("this key may have {} requests waiting, and has them", *limits.queued),
           retry_after());
  }
  const double now = steady_seconds();
  for (const auto& [bucket, what] :
       {std::pair(key.input.get(), "read"), std::pair(key.output.get(), "draw")}) {
    if (bucket == nullptr || bucket->level(now) >= 1) continue;
    refuse(key,
           fmt::format("this key may {} {:.0f} tokens a minute, and did", what, bucket->capacity()),
           static_cast<int>(std::ceil(bucket->seconds_to_refill(now))));
  }
  if (n_queued_ >= options_.max_queue_requests) {
    refuse(key, fmt::format("the queue is full: {} requests wait", n_queued_.load()),
           retry_after());
  }
  if (n_queued_ > 0 && n_queued_tokens_ + n_prompt_tokens > options_.max_queue_tokens) {
    refuse(key,
           fmt::format("the queue is full: prompts of {} tokens wait", n_queued_tokens_.load()),
           retry_after());
  }
  if (key.input) key.input->take(static_cast<double>(n_prompt_tokens), now);
  return std::make_shared<Ticket>(*this, key, n_prompt_tokens);
}

std::shared_ptr<Ticket> Admission::readmit(ApiKey& key, std::int64_t n_prompt_tokens) {
  const std::lock_guard lock(mutex_);
  return std::make_shared<Ticket>(*this, key, n_prompt_tokens);
}

Headers Admission::rate_headers(ApiKey& key) {
  Headers headers;
  const KeyLimits& limits = key.limits;
  if (limits.concurrent) {
    headers.emplace_back("x-ratelimit-limit-requests", std::to_string(*limits.concurrent));
    headers.emplace_back(
        "x-ratelimit-remaining-requests",
        std::to_string(std::max<std::int64_t>(0, *limits.concurrent - key.n_running)));
  }
  const double now = steady_seconds();
  const auto add = [&](TokenBucket* bucket, const std::string& name) {
    if (bucket == nullptr) return;
    headers.emplace_back("x-ratelimit-limit-" + name, fmt::format("{:.0f}", bucket->capacity()));
    headers.emplace_back("x-ratelimit-remaining-" + name,
                         fmt::format("{:.0f}", std::max(0.0, std::floor(bucket->level(now)))));
    headers.emplace_back("x-ratelimit-reset-" + name,
                         fmt::format("{:.0f}s", std::ceil(bucket->seconds_to_refill(now))));
  };
  add(key.input.get(), "tokens");
  add(key.output.get(), "output-tokens");
  return headers;
}

}  // namespace hadal::server
