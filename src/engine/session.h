#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "core/cuda/queue.h"
#include "engine/batch_runner.h"

namespace hadal::engine {

// Threads, memory and kernels for running models. Must outlive the sessions that use it.
class Runtime {
 public:
  // n_threads = 0 takes every core this process may use.
  // Throws Error device when a GPU is asked for and there is none that will do.
  explicit Runtime(int n_threads = 0, std::optional<int> gpu = std::nullopt);
  [[nodiscard]] ExecContext context(Numerics numerics) {
    return {stream_, allocator(), registry_, numerics};
  }
  [[nodiscard]] ThreadPool& pool() { return pool_; }
  [[nodiscard]] const KernelRegistry& registry() const { return registry_; }
  [[nodiscard]] const Stream& stream() const { return stream_; }
  [[nodiscard]] PoolAllocator& allocator() { return queue_ ? queue_->memory() : allocator_; }
  [[nodiscard]] const cuda::Queue* gpu() const { return queue_.get(); }  // null: the CPU
  // For caches of models that run here.
  [[nodiscard]] cache::DeviceMemory cache_memory() {
    return queue_ ? cache::DeviceMemory{&stream_, &queue_->memory()} : cache::DeviceMemory{};
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<cuda::Queue> queue_;
  Stream stream_;
  PoolAllocator allocator_;
  KernelRegistry registry_;
};

struct SessionOptions {
  Numerics numerics = Numerics::official;
  std::int64_t prefill_chunk = 512;  // tokens a forward pass takes of a prompt; bits do not depend
                                     // on it
  // Tokens that the MTP block drafts a step; 0 decodes one by one. Ignored without MTP block.
  std::int64_t draft_tokens = 0;
};

struct SessionStats {
  std::int64_t prefilled_tokens = 0, reused_tokens = 0;
  double prefill_seconds = 0;
  std::int64_t decoded_tokens = 0, decode_steps = 0;
  double decode_seconds = 0;
  std::int64_t drafted_tokens = 0, accepted_drafts = 0;
};

// One sequence and its history. The text so far is `tokens()`; all of it but possibly the newest
// token has passed through the model.
class Session {
 public:
  // Throws unsupported when the model's sizes cannot run in these numerics.
  Session(Runtime& runtime, const LoadedModel& loaded, const SessionOptions& options);
  ~Session();

  // Called between chunks; false stops the prefill with Error cancelled (progress is kept).
  using PrefillProgress = std::function<bool(std::int64_t done, std::int64_t total)>;

  // Makes `prompt` the text: continues from what it shares with the present one where the history
  // allows it, else starts over. Throws invalid_argument when it is empty, longer than the
  // context, or has an id outside the vocabulary.
  void set_prompt(std::span<const TokenId> prompt, const PrefillProgress& progress = nullptr);

  // Draws the next tokens: one, or with drafts up to draft_tokens + 1, and appends them. The same
  // tokens come in the same order whatever the options. `first_index` is the output index of the
  // first one. Empty when the context is full.
  [[nodiscard]] std::vector<SampledToken> step(Sampler& sampler, std::int64_t first_index);

  // Drops the newest tokens, as many as the last step drew at most.
  void truncate(std::int64_t n_tokens);
  void reset();

  [[nodiscard]] const std::vector<TokenId>& tokens() const { return text_.tokens; }
  [[nodiscard]] const SessionStats& stats() const { return stats_; }
  [[nodiscard]] std::int64_t context_limit() const { return config().max_position_embeddings; }
  [[nodiscard]] std::int64_t vocab_size() const { return config().vocab_size; }
  [[nodiscard]] cache::PagedKv::Bytes kv_bytes() const { return kv_.bytes(text_.slot); }
  [[nodiscard]] ExecContext& context() { return runner_.context(); }

 private:
  [[nodiscard]] const model::Config& config() const { return loaded_.config; }
  [[nodiscard]] bool drafting() const { return runner_.drafting(); }
  void run(BatchJob& job);

  const LoadedModel& loaded_;
  SessionOptions options_;
  cache::PagedKv kv_;
  BatchRunner runner_;
  Sequence text_;
  SessionStats stats_;
};

}  // namespace hadal::engine
