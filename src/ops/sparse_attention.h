#pragma once

#include "kernels/sparse_attention.h"
#include "ops/exec_context.h"
#include "ops/kv_rows.h"

namespace hadal::ops {

struct AttentionOptions {
  std::int64_t window;
  std::int64_t ratio;  // 0: window only
  float softmax_scale;
};

// What a training step adds; serving has none of it.
struct AttentionTraining {
  // What this step's entries were rounded from, for their gradient: [n_entries, head_dim], found by
  // AttentionSequence::added. Entries from before the step are constants.
  Tensor entries;
  // When given, becomes log(sum(exp)) over window, entries and sink: [n_tokens, n_heads] f32.
  Tensor* log_sum_exp = nullptr;
};

// Attention over the sliding window and compressed entries (see kernels/sparse_attention.h).
// Differentiable in q, in what new_rows were rounded from, in training.entries and in sinks; the
// sequences' rows must stay as they are until backward has run.
//   q         [n_tokens, n_heads, head_dim]  activation dtype
//   new_rows  this batch's KV rows, one a token
//   sinks     [n_heads] f32
//   selected  [n_tokens, topk] i32, or empty: every visible entry
//   return    shape and dtype of q
// Saves q, the result, the log-sum-exp and the stored rows.
[[nodiscard]] Tensor sparse_attention(ExecContext& ctx, const Tensor& q, const StepRows& new_rows,
                                      const Tensor& sinks, const Tensor& selected,
                                      const AttentionOptions& options,
                                      std::span<const AttentionSequence> sequences,
                                      const AttentionTraining& training = {});

}  // namespace hadal::ops
