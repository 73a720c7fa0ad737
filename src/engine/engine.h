// The step loop: many generations at once over one model.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "cache/prefix_cache.h"
#include "engine/loaded_model.h"
#include "engine/request.h"
#include "engine/session.h"

namespace hadal::engine {

// Where drawn tokens are made durable before anyone sees them. The engine hands over one record a
// step and never waits: `publish` is called when the record may be shown, in order, on any one
// thread. The journal implements it; without one, tokens are published at once.
class TokenLog {
 public:
  virtual ~TokenLog() = default;
  struct Token {
    const std::string* stream;
    const TokenEvent* event;
  };
  struct Closed {
    const std::string* stream;
    const Finish* finish;
  };
  virtual void commit(std::span<const Token> tokens, std::span<const Closed> closed,
                      std::function<void()> publish) = 0;
};

struct EngineOptions {
  Numerics numerics = Numerics::official;
  std::int64_t max_running = 64;       // sequences in a step
  std::int64_t max_step_tokens = 512;  // rows of one forward pass: all decodes, then prompts
  std::int64_t max_long_prefills = 2;  // prompts above long_prefill_tokens in flight
  std::int64_t long_prefill_tokens = 32768;
  std::size_t kv_bytes = std::size_t{1} << 30;  // pages of compressed entries, cached ones included
  std::int64_t page_tokens = 128;
  std::int64_t draft_tokens = 1;     // by the MTP block, where there is one; 0: none
  std::int64_t max_draft_batch = 8;  // no drafts when more sequences decode: verifying costs
  std::int64_t snapshot_interval = 4096;
  bool prefix_cache = true;
  std::size_t snapshot_bytes = std::size_t{256} << 20;
  double pinned_share = 0.25;  // of pages and of snapshot_bytes: kept for shared preambles
  enum class Preemption : std::uint8_t { swap, drop } preemption = Preemption::swap;
  Path swap_directory = {};          // empty: the host's memory
  std::int64_t max_preemptions = 3;  // of one request; then it is left alone
};

// What a status page wants to know; a copy, taken between steps.
struct EngineStatus {
  std::int64_t n_running = 0, n_waiting = 0, n_prefilling = 0, n_preempted = 0;
  std::int64_t pages_total = 0, pages_used = 0, pages_cached = 0, pages_pinned = 0;
  std::int64_t pinned_prefixes = 0;
  std::size_t state_bytes = 0, page_bytes = 0, snapshot_bytes = 0,
              pinned_bytes = 0;  // of the pages and snapshots of pinned prefixes
  std::uint64_t steps = 0, prompt_tokens = 0, cached_tokens = 0, replayed_tokens = 0,
                generated_tokens = 0, drafted_tokens = 0, accepted_drafts = 0, preemptions = 0,
                prefix_queries = 0, prefix_hits = 0;  // the last two in tokens
  double step_seconds = 0, forward_seconds = 0;       // sums
  double seconds_since_step = 0;                      // 0 while idle
};

// One step, for histograms.
struct StepReport {
  std::int64_t decode_rows = 0, prefill_rows = 0;
  double seconds = 0, forward_seconds = 0;
};

class EngineLoop;

class Engine {
 public:
  // `log` may be null. Everything passed must outlive the engine. Throws unsupported when the
  // model cannot run in these numerics, invalid_argument for options that cannot be.
  Engine(Runtime& runtime, const LoadedModel& loaded, const EngineOptions& options, TokenLog* log,
         cache::DiskStore* disk = nullptr);
  ~Engine();  // stops after the present step; what is unfinished stays unfinished in the log

  // From any thread. Throws invalid_argument when the request can never run: an empty prompt, a
  // token outside the vocabulary, a prompt that fills the context or the page budget.
  void submit(Request request);
  // Ends a generation at the next step boundary; all its open choices finish `cancelled`.
  // Unknown names are ignored: it may just have finished.
  void cancel(const std::string& stream);
  // A generation whose reader is too slow stands still (and keeps its history) until resumed.
  void suspend(const std::string& stream, bool suspended);
  // Preempts as if pages had run out; for tests and drains.
  void preempt(const std::string& stream);

  [[nodiscard]] EngineStatus status() const;
  [[nodiscard]] const EngineOptions& options() const;
  // Called after every step on the engine's thread, for metrics. Set it before the first request.
  void on_step(std::function<void(const StepReport&)> observer);

 private:
  std::unique_ptr<EngineLoop> loop_;
};

}  // namespace hadal::engine
