#pragma once

#include "core/quant.h"
#include "kernels/registry.h"

namespace hadal {

// One gate of manifold-constrained hyper-connections.  n = hc_mult, mixes = (2 + n) * n.
struct HcWeights {
  QuantTensor fn;  // [mixes, n*hidden] f32 (hc_head: [n, n*hidden])
  Tensor scale;    // [3] f32: pre, post, comb (hc_head: [1])
  Tensor base;     // [mixes] f32 (hc_head: [n])
};

// Collapses the streams to the sub-layer's input and derives how its output is spread again.
// The Sinkhorn iteration ends on a column normalisation; the first index of comb is the source
// stream.  Source: DeepSeek-V4 §2.2; architecture.md §3.1.
struct HcPreArgs {
  TensorView x;        // [n_tokens, hidden]     out, dtype of streams
  TensorView post;     // [n_tokens, n]          out, f32
  TensorView comb;     // [n_tokens, n, n]       out, f32
  TensorView streams;  // [n_tokens, n, hidden]  bf16 | f32
  const HcWeights* weights;
  int sinkhorn_iters;
  float hc_eps;
  float norm_eps;
};
inline constexpr KernelName<HcPreArgs> kHcPre{"hc_pre"};

// y[k] = post[k] * a + sum_j comb[j, k] * streams[j]; the sum first, in f32, then one rounding.
struct HcPostArgs {
  TensorView y;        // [n_tokens, n, hidden]  out
  TensorView a;        // [n_tokens, hidden]     sub-layer output
  TensorView streams;  // [n_tokens, n, hidden]
  TensorView post;     // [n_tokens, n]          f32
  TensorView comb;     // [n_tokens, n, n]       f32
};
inline constexpr KernelName<HcPostArgs> kHcPost{"hc_post"};

// The final collapse: no post, no comb.  Source: architecture.md §3.3.
struct HcHeadArgs {
  TensorView x;        // [n_tokens, hidden]     out
  TensorView streams;  // [n_tokens, n, hidden]
  const HcWeights* weights;
  float hc_eps;
  float norm_eps;
};
inline constexpr KernelName<HcHeadArgs> kHcHead{"hc_head"};

// The gates alone, from mixes that already carry the RMS factor: pre [n], post [n], comb [n, n].
// On the host, one token; the reference of the kernels above.
void hc_split(const float* mixes, const float* scale, const float* base, int n, int sinkhorn_iters,
              float eps, float* pre, float* post, float* comb);

}  // namespace hadal
