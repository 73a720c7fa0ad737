// A small model, requests to it, and a sink that waits.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <random>

#include "engine/engine.h"
#include "engine/generate.h"

namespace hadal::engine {

// Has an MTP block, CSA, HCA and window layers.
inline const LoadedModel& tiny() {
  static const auto loaded = load_model(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  return *loaded;
}

inline Runtime& runtime() {
  static Runtime instance(2);
  return instance;
}

inline std::vector<TokenId> prompt(std::size_t n, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) id = static_cast<TokenId>(rng() % 256);
  return ids;
}

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::optional<Finish> finish;
  bool operator==(const Answer& o) const { return tokens == o.tokens && logprobs == o.logprobs; }
};

class TestSink final : public OutputSink {
 public:
  void on_prompt(const PromptStats& stats) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(stats_) << "on_prompt comes once";
    stats_ = stats;
  }
  void on_tokens(const std::vector<TokenEvent>& tokens) override {
    const std::lock_guard lock(mutex_);
    for (const TokenEvent& t : tokens) {
      Answer& a = answers_[t.choice];
      EXPECT_FALSE(a.finish) << "a token behind the end";
      a.tokens.push_back(t.token);
      a.logprobs.push_back(t.logprob);
      events_.push_back(t);
    }
    changed_.notify_all();
  }
  void on_finish(const Finish& finish) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(answers_[finish.choice].finish) << "a choice finishes once";
    answers_[finish.choice].finish = finish;
    ++n_finished_;
    changed_.notify_all();
  }
  void on_progress(std::int64_t done, std::int64_t total) override {
    const std::lock_guard lock(mutex_);
    EXPECT_LE(done, total);
    ++n_progress_;
  }

  void wait(int n_choices = 1) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(
        changed_.wait_for(lock, std::chrono::minutes(5), [&] { return n_finished_ >= n_choices; }));
  }
  void wait_for_tokens(std::size_t n) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(
        changed_.wait_for(lock, std::chrono::minutes(5), [&] { return events_.size() >= n; }));
  }
  [[nodiscard]] Answer answer(std::int32_t choice = 0) {
    const std::lock_guard lock(mutex_);
    return answers_[choice];
  }
  [[nodiscard]] std::vector<TokenEvent> events() {
    const std::lock_guard lock(mutex_);
    return events_;
  }
  [[nodiscard]] PromptStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_.value_or(PromptStats{});
  }
  [[nodiscard]] int n_progress() {
    const std::lock_guard lock(mutex_);
    return n_progress_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::int32_t, Answer> answers_;
  std::vector<TokenEvent> events_;
  std::optional<PromptStats> stats_;
  int n_finished_ = 0, n_progress_ = 0;
};

inline Request make_request(const std::string& stream, std::vector<TokenId> ids,
                            std::int64_t max_tokens, float temperature = 1.0f,
                            std::uint64_t seed = 7) {
  Request r;
  r.stream = stream;
  r.prompt = std::move(ids);
  r.sampling.temperature = temperature;
  r.sampling.seed = seed;
  r.max_tokens = max_tokens;
  r.sink = std::make_shared<TestSink>();
  return r;
}

inline std::shared_ptr<TestSink> sink_of(const Request& r) {
  return std::static_pointer_cast<TestSink>(r.sink);
}

// What one sequence alone, without the engine, draws.
inline Answer alone(const Request& r, std::int32_t choice = 0) {
  static Runtime own(1);  // the engine may be running in the other
  Session session(own, tiny(), {});
  GenerationRequest g{
      .prompt = r.prompt, .sampling = r.sampling, .max_tokens = r.max_tokens, .stop_tokens = {}};
  g.sampling.choice = static_cast<std::uint32_t>(choice);
  const GenerationResult result = generate(session, g, nullptr);
  Answer a;
  for (const SampledToken& t : result.tokens) {
    a.tokens.push_back(t.token), a.logprobs.push_back(t.logprob);
  }
  return a;
}

}  // namespace hadal::engine
