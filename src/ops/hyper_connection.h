#pragma once

#include "kernels/hyper_connection.h"
#include "ops/exec_context.h"

namespace hadal::ops {

struct HcOptions {
  int sinkhorn_iters;
  float hc_eps;
  float norm_eps;
};

struct HcPre {
  Tensor x;     // [n_tokens, hidden]  activation dtype
  Tensor post;  // [n_tokens, n]       f32
  Tensor comb;  // [n_tokens, n, n]    f32
};

// Narrows the residual streams [n_tokens, n, hidden] to one and derives the gates that widen a
// sub-layer's output again.  Source: DeepSeek-V4 §2.2 (mHC); architecture.md §3.1.
// Differentiable in streams and weights, all three outputs; saves streams and the mixes.
[[nodiscard]] HcPre hc_pre(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
                           const HcOptions& options);

// post[k] * a + sum_j comb[j, k] * streams[j].  Source: architecture.md §3.2.
// Differentiable in everything; saves all of its inputs.
[[nodiscard]] Tensor hc_post(ExecContext& ctx, const Tensor& a, const Tensor& streams,
                             const Tensor& post, const Tensor& comb);

// The final collapse.  Source: architecture.md §3.3.  Differentiable as hc_pre.
[[nodiscard]] Tensor hc_head(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
                             const HcOptions& options);

}  // namespace hadal::ops
