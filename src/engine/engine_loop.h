// The engine's thread: messages in, steps, results out.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler.h"

namespace hadal::engine {

class EngineLoop {
 public:
  EngineLoop(Runtime& runtime, const LoadedModel& loaded, const EngineOptions& options,
             TokenLog* log, cache::DiskStore* disk);
  ~EngineLoop();

  struct Cancel {
    std::string stream;
  };
  struct Suspend {
    std::string stream;
    bool suspended;
  };
  struct Preempt {
    std::string stream;
  };
  using Message = std::variant<Request, Cancel, Suspend, Preempt>;
  void post(Message message);

  // Refuses what can never run. From any thread.
  void validate(const Request& request) const;
  [[nodiscard]] EngineStatus status() const;
  [[nodiscard]] const EngineOptions& options() const { return options_; }
  void on_step(std::function<void(const StepReport&)> observer) {
    step_observer_ = std::move(observer);
  }

 private:
  // Results of a step, on their way to sinks.
  struct Publication {
    std::shared_ptr<OutputSink> sink;
    const std::string* stream;
    std::optional<PromptStats> prompt;
    std::vector<TokenEvent> tokens;
    std::vector<Finish> finished;
  };
  using Publications = std::unordered_map<Generation*, Publication>;

  // What a step does, job by job, and whose jobs they are.
  struct Plan {
    std::vector<BatchJob> jobs;
    std::vector<Choice*> choices;
    void add(Choice& choice, BatchJob job) {
      job.sequence = &choice.text;
      jobs.push_back(std::move(job));
      choices.push_back(&choice);
    }
  };

  void run() noexcept;
  [[nodiscard]] bool step();  // false when there was nothing to do
  void receive(bool may_wait);
  void handle(Request& request);
  void handle(const Cancel& cancel);
  void handle(const Suspend& suspend);
  void handle(const Preempt& preempt);
  [[nodiscard]] Generation* find(const std::string& stream);

  // Admission and memory.
  void admit();
  using Pins = cache::PrefixCache::Pins;
  [[nodiscard]] bool start(Choice& choice, Pins pins);
  [[nodiscard]] bool free_pages(std::int64_t n, Pins pins);
  [[nodiscard]] bool make_room(Choice& choice, std::int64_t end_position);
  void preempt(Choice& choice);
  void fork(Choice& first);
  void release(Choice& choice);

  // One step.
  [[nodiscard]] Plan plan();
  void plan_decodes(Plan& plan, std::int64_t& budget);
  void plan_prompts(Plan& plan, std::int64_t& budget);
  void take(BatchJob& job, Choice& choice);
  void keep_history(Choice& choice, std::int64_t begin);
  void finish(Choice& choice, FinishReason reason, std::string error = {});
  void publish();
  void update_status(bool idle);

  [[nodiscard]] std::vector<Choice*> choices(Choice::State state) const;
  Publication& publication(Generation& generation);

  const LoadedModel& loaded_;
  const EngineOptions options_;
  TokenLog* log_;
  cache::PagedKv kv_;
  std::unique_ptr<cache::PrefixCache> prefixes_;  // null when switched off
  SwapStore swap_;
  BatchRunner runner_;
  Scheduler scheduler_;
  std::int64_t context_limit_;
  std::function<void(const StepReport&)> step_observer_;

  std::vector<std::unique_ptr<Generation>> generations_;
  std::uint64_t arrivals_ = 0;
  Publications publications_;
  EngineStatus counters_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Message> inbox_;
  bool stopping_ = false;
  EngineStatus status_;
  Generation::Clock::time_point last_step_ = Generation::Clock::now();
  bool idle_ = true;

  std::thread thread_;  // last: it uses everything above
};

}  // namespace hadal::engine
