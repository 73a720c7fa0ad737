#pragma once

#include "kernels/sparse_attention.h"
#include "ops/exec_context.h"

namespace hadal::ops {

struct AttentionOptions {
  std::int64_t window;
  std::int64_t ratio;  // 0: window only
  float softmax_scale;
};

// Attention over the sliding window and compressed entries (see kernels/sparse_attention.h).
//   q         [n_tokens, n_heads, head_dim]  activation dtype
//   new_rows  this batch's KV rows, one a token
//   sinks     [n_heads] f32
//   selected  [n_tokens, topk] i32, or empty: every visible entry
//   return    shape and dtype of q
[[nodiscard]] Tensor sparse_attention(ExecContext& ctx, const Tensor& q, const PagedRows& new_rows,
                                      const Tensor& sinks, const Tensor& selected,
                                      const AttentionOptions& options,
                                      std::span<const AttentionSequence> sequences);

}  // namespace hadal::ops
