// One forward pass over many texts: reading prompts, drafting, verifying and drawing at once.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/paged_kv.h"
#include "core/error.h"
#include "engine/loaded_model.h"
#include "engine/sampler.h"
#include "grammar/constraint.h"

namespace hadal::engine {

// One text, how far the model has read it, and how its next token is drawn.
struct Sequence {
  std::int64_t slot = -1;       // of the PagedKv
  std::vector<TokenId> tokens;  // prompt and output
  std::int64_t n_prompt = 0;    // token i has output index i - n_prompt
  std::int64_t n_read = 0;      // positions [0, n_read) are in the history
  std::vector<float> logits;    // of the last token, when a job was to keep them; else empty
  // Streams of the newest read positions that the draft block has not seen: their next token was
  // not known yet. Rows [0, k) are positions n_read - k ...
  Tensor pending_streams;

  Sampler* sampler = nullptr;                 // both borrowed
  grammar::Constraint* constraint = nullptr;  // may be null
  std::int32_t top_logprobs = 0;

  [[nodiscard]] std::int64_t n_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  [[nodiscard]] std::int64_t n_unread() const { return n_tokens() - n_read; }
  [[nodiscard]] std::int64_t n_output() const { return n_tokens() - n_prompt; }
};

struct DrawnToken {
  SampledToken token;
  std::vector<SampledToken> top = {};  // Sequence::top_logprobs of them, best first
};

// What is to be done to a sequence in one pass: read some unread tokens, and if that were all,
// draw what follows.
struct BatchJob {
  Sequence* sequence = nullptr;
  std::int64_t n_rows = 0;  // unread tokens to read; 0 draws from kept logits
  std::int64_t n_drafts =
      0;                     // at most so many guesses are verified; only when nothing stays unread
  bool keep_logits = false;  // instead of drawing

  std::vector<DrawnToken> drawn = {};  // appended to the sequence's tokens, too
  std::int64_t n_drafted = 0;          // guesses that were made; drawn.size() - 1 were right
  std::optional<Error> error = {};     // this job failed, and only this one
};

// Runs jobs of one model. What a job yields depends on nothing but its sequence: not on the other
// jobs, on how its text was cut into passes, or on drafts (coupled sampling: a guess is right when
// the target draws it with the same noise).  Source: serving.md §5.7, §5.8.
class BatchRunner {
 public:
  // With `drafting`, the MTP block follows every text. All references must outlive this.
  BatchRunner(ExecContext ctx, const LoadedModel& loaded, cache::PagedKv& kv, bool drafting);

  // Histories must have room (PagedKv::reserve) for what is read and drafted. A pass that throws
  // is repeated job by job, so that only the job to blame fails.
  void run(std::span<BatchJob> jobs);

  [[nodiscard]] ExecContext& context() { return ctx_; }
  [[nodiscard]] bool drafting() const { return drafting_; }
  // Seconds inside the model, summed.
  [[nodiscard]] double forward_seconds() const { return forward_seconds_; }

 private:
  struct Pass;  // a job's rows of the forward pass
  void run_pass(std::span<BatchJob> jobs);
  [[nodiscard]] std::vector<std::vector<TokenId>> draft(std::span<const BatchJob> jobs);
  void teach(std::span<const BatchJob> jobs, std::span<const Pass> passes, const Tensor& streams);

  ExecContext ctx_;
  const LoadedModel& loaded_;
  cache::PagedKv& kv_;
  bool drafting_;
  double forward_seconds_ = 0;
};

}  // namespace hadal::engine
