// An engine that draws what a test wrote down.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "server/generator.h"

namespace hadal::server::test {

// Draws from a script a token at a time on a thread of its own; obeys max_tokens, stop tokens and
// observers as the engine does. Waits before token `hold_at` of every generation until release().
class FakeGenerator final : public Generator {
 public:
  using Script = std::function<std::vector<TokenId>(const engine::Request&, std::int32_t choice)>;

  explicit FakeGenerator(Script script) : script_(std::move(script)), thread_([this] { run(); }) {}
  ~FakeGenerator() override { stop(); }
  // As a crash or a shutdown: what is unfinished stays unfinished.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void hold_at(std::int64_t n_tokens) {
    const std::lock_guard lock(mutex_);
    hold_at_ = n_tokens;
  }
  void release() {
    hold_at(-1);
    changed_.notify_all();
  }
  void fail_after(std::int64_t n_tokens, std::string sentence) {
    const std::lock_guard lock(mutex_);
    fail_at_ = n_tokens, failure_ = std::move(sentence);
  }
  void set_log(engine::TokenLog* log) { log_ = log; }

  void submit(engine::Request request) override {
    if (request.prompt.size() >= reject_prompts_of_) {
      throw Error(ErrorCode::invalid_argument, "the fake engine does not like this prompt");
    }
    const std::lock_guard lock(mutex_);
    submitted_.push_back(request);
    auto run = std::make_unique<Run>();
    for (std::int32_t c = 0; c < request.n_choices; ++c) {
      Choice choice;
      choice.script = script_(request, c);
      if (request.make_observer) choice.observer = request.make_observer(c);
      if (!request.drawn.empty()) {
        const auto& drawn = request.drawn.at(static_cast<std::size_t>(c));
        choice.n = static_cast<std::int64_t>(drawn.tokens.size());
        choice.finished = drawn.finished;
        for (const TokenId token : drawn.tokens) {
          if (choice.observer) (void)choice.observer->ends_with(token);
        }
      }
      run->choices.push_back(std::move(choice));
    }
    run->request = std::move(request);
    runs_.push_back(std::move(run));
    changed_.notify_all();
  }
  void cancel(const std::string& stream) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(stream);
    for (const auto& run : runs_) run->cancelled |= run->request.stream == stream;
    changed_.notify_all();
  }
  void suspend(const std::string& stream, bool suspended) override {
    const std::lock_guard lock(mutex_);
    suspends_.emplace_back(stream, suspended);
    for (const auto& run : runs_) {
      if (run->request.stream == stream) run->suspended = suspended;
    }
    changed_.notify_all();
  }
  void preempt(const std::string& stream) override {
    const std::lock_guard lock(mutex_);
    preempted_.push_back(stream);
    changed_.notify_all();
  }
  engine::EngineStatus status() const override {
    engine::EngineStatus status;
    const std::lock_guard lock(mutex_);
    status.n_running = static_cast<std::int64_t>(runs_.size());
    status.generated_tokens = n_drawn_;
    status.seconds_since_step = stuck_seconds_;
    return status;
  }

  // Waits until `what` of these holds.
  template <class F>
  bool wait(F what) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return what(*this); });
  }
  std::vector<engine::Request> submitted() const {
    const std::lock_guard lock(mutex_);
    return submitted_;
  }

  // Under the lock of wait().
  std::vector<engine::Request> submitted_;
  std::vector<std::string> cancelled_, preempted_;
  std::vector<std::pair<std::string, bool>> suspends_;
  std::atomic<std::uint64_t> n_drawn_ = 0;
  std::size_t reject_prompts_of_ = std::size_t{1} << 40;
  std::atomic<double> stuck_seconds_ = 0;
  std::atomic<bool> hold_prompts_ = false;  // nothing leaves the queue

 private:
  struct Choice {
    std::vector<TokenId> script;
    std::unique_ptr<engine::TokenObserver> observer;
    std::int64_t n = 0;
    bool finished = false;
  };
  struct Run {
    engine::Request request;
    std::vector<Choice> choices;
    bool prompted = false, cancelled = false, suspended = false;
  };
  struct Result {
    std::shared_ptr<engine::OutputSink> sink;
    std::string stream;
    std::optional<engine::PromptStats> prompt;
    std::vector<engine::TokenEvent> tokens;
    std::vector<engine::Finish> ends;
  };

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      std::vector<Result> results;
      for (const auto& one : runs_) step(*one, results);
      std::erase_if(runs_, [](const auto& one) {
        return std::ranges::all_of(one->choices, [](const Choice& c) { return c.finished; });
      });
      if (results.empty()) {
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      publish(std::move(results));
      lock.lock();
      changed_.notify_all();
    }
  }

  void step(Run& run, std::vector<Result>& results) {
    const engine::Request& request = run.request;
    Result result{request.sink, request.stream, {}, {}, {}};
    if (run.cancelled) {
      for (std::size_t c = 0; c < run.choices.size(); ++c) {
        end(run, c, engine::FinishReason::cancelled, result);
      }
    } else if (!run.prompted) {
      if (hold_prompts_) return;
      run.prompted = true;
      const auto n = static_cast<std::int64_t>(request.prompt.size());
      result.prompt = engine::PromptStats{.prompt_tokens = n, .cached_tokens = n / 2};
    } else if (run.suspended) {
      return;
    } else {
      for (std::size_t c = 0; c < run.choices.size(); ++c) draw(run, c, result);
    }
    if (result.prompt || !result.tokens.empty() || !result.ends.empty()) {
      results.push_back(std::move(result));
    }
  }

  void draw(Run& run, std::size_t c, Result& result) {
    Choice& choice = run.choices[c];
    if (choice.finished || choice.n == hold_at_) return;
    if (choice.n == fail_at_) return end(run, c, engine::FinishReason::error, result);
    const auto at = static_cast<std::size_t>(choice.n);
    if (at >= choice.script.size()) return end(run, c, engine::FinishReason::length, result);
    const TokenId token = choice.script[at];
    const auto& stops = run.request.stop_tokens;
    const bool stop = std::ranges::find(stops, token) != stops.end();
    engine::TokenEvent event{.choice = static_cast<std::int32_t>(c),
                             .index = choice.n,
                             .token = token,
                             .logprob = -0.5f,
                             .is_stop_token = stop};
    for (std::int32_t i = 0; i < run.request.top_logprobs; ++i) {
      event.top.push_back({token, -0.5f - static_cast<float>(i)});
    }
    result.tokens.push_back(std::move(event));
    ++choice.n, ++n_drawn_;
    const bool seen_enough = !stop && choice.observer && choice.observer->ends_with(token);
    if (stop || seen_enough) return end(run, c, engine::FinishReason::stop, result);
    if (run.request.max_tokens > 0 && choice.n >= run.request.max_tokens) {
      end(run, c, engine::FinishReason::length, result);
    }
  }

  void end(Run& run, std::size_t c, engine::FinishReason reason, Result& result) {
    Choice& choice = run.choices[c];
    if (std::exchange(choice.finished, true)) return;
    result.ends.push_back({.choice = static_cast<std::int32_t>(c),
                           .reason = reason,
                           .error = reason == engine::FinishReason::error ? failure_ : "",
                           .n_tokens = choice.n});
  }

  void publish(std::vector<Result> results) {
    for (Result& result : results) {
      const auto deliver = [result] {
        if (result.prompt) result.sink->on_prompt(*result.prompt);
        if (!result.tokens.empty()) result.sink->on_tokens(result.tokens);
        for (const engine::Finish& finish : result.ends) result.sink->on_finish(finish);
      };
      if (log_ == nullptr) {
        deliver();
        continue;
      }
      std::vector<engine::TokenLog::Token> tokens;
      for (const auto& event : result.tokens) tokens.push_back({&result.stream, &event});
      std::vector<engine::TokenLog::Closed> closed;
      for (const auto& finish : result.ends) closed.push_back({&result.stream, &finish});
      log_->commit(tokens, closed, deliver);
    }
  }

  const Script script_;
  engine::TokenLog* log_ = nullptr;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Run>> runs_;
  std::int64_t hold_at_ = -1, fail_at_ = -1;
  std::string failure_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace hadal::server::test
