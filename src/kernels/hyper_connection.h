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

// What backward wants to know again, all f32; empty when nobody will ask.
struct HcSaved {
  TensorView mixes;  // [n_tokens, mixes]  streams . fn^T times the RMS factor
  TensorView rms;    // [n_tokens]         that factor
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
  HcSaved saved{};
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
  HcSaved saved{};
};
inline constexpr KernelName<HcHeadArgs> kHcHead{"hc_head"};

// Gradients of hc_pre, and, with empty dpost and dcomb, of hc_head. The gradients that come out are
// added to; an empty one is not wanted.  Source: training.md §4.8.
struct HcGateBackwardArgs {
  TensorView dstreams;  // [n_tokens, n, hidden]  f32
  TensorView dfn;       // [mixes, n*hidden]      f32
  TensorView dscale;    // [3] or [1]             f32
  TensorView dbase;     // [mixes]                f32
  TensorView dx;        // [n_tokens, hidden]     f32, in
  TensorView dpost;     // [n_tokens, n]          f32, in
  TensorView dcomb;     // [n_tokens, n, n]       f32, in
  TensorView streams;   // [n_tokens, n, hidden]  bf16 | f32
  HcSaved saved;
  const HcWeights* weights;
  int sinkhorn_iters = 0;
  float hc_eps;
};
inline constexpr KernelName<HcGateBackwardArgs> kHcGateBackward{"hc_gate_backward"};

// Gradients of hc_post, all written; an empty one is not wanted.
struct HcPostBackwardArgs {
  TensorView da;        // [n_tokens, hidden]     f32, out
  TensorView dstreams;  // [n_tokens, n, hidden]  f32, out
  TensorView dpost;     // [n_tokens, n]          f32, out
  TensorView dcomb;     // [n_tokens, n, n]       f32, out
  TensorView dy;        // [n_tokens, n, hidden]  f32
  TensorView a;         // [n_tokens, hidden]     bf16 | f32
  TensorView streams;   // [n_tokens, n, hidden]  dtype of a
  TensorView post;      // [n_tokens, n]          f32
  TensorView comb;      // [n_tokens, n, n]       f32
};
inline constexpr KernelName<HcPostBackwardArgs> kHcPostBackward{"hc_post_backward"};

// The gates alone, from mixes that already carry the RMS factor: pre [n], post [n], comb [n, n].
// On the host, one token; the reference of the kernels above.
void hc_split(const float* mixes, const float* scale, const float* base, int n, int sinkhorn_iters,
              float eps, float* pre, float* post, float* comb);

}  // namespace hadal
