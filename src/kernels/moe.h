#pragma once

#include <span>

#include "core/quant.h"
#include "kernels/registry.h"

namespace hadal {

// Chooses experts and their weights: scores sqrt(softplus(logits)); the choice by score + bias, by
// table or by order, ties to the lower expert; the weights from unbiased scores, normalised and
// scaled.
// Source: DeepSeek-V4 §2.1; architecture.md §3.7.
struct MoeRouteArgs {
  TensorView experts;       // [n_tokens, topk]  out, i32, best first (table order when hashed)
  TensorView weights;       // [n_tokens, topk]  out, f32
  TensorView logits;        // [n_tokens, n_experts] f32
  TensorView bias;          // [n_experts] f32; learned only
  TensorView token_ids;     // [n_tokens] i32; hashed only
  TensorView expert_table;  // [vocab, topk] i32; hashed only
  TensorView forced{};      // [n_tokens, topk] i32; forced only
  float routed_scaling_factor = 1;
};
inline constexpr KernelName<MoeRouteArgs> kMoeRoute{"moe_route"};

// Gradient of the weights in the logits; the choice has none.  Source: training.md §4.6.
struct MoeRouteBackwardArgs {
  TensorView dlogits;   // [n_tokens, n_experts] f32, out
  TensorView dweights;  // [n_tokens, topk] f32
  TensorView logits;    // [n_tokens, n_experts] f32
  TensorView experts;   // [n_tokens, topk] i32
  float routed_scaling_factor = 1;
};
inline constexpr KernelName<MoeRouteBackwardArgs> kMoeRouteBackward{"moe_route_backward"};

// Sequence-wise balance: with f_i = n_experts / (topk * length) * (times expert i was chosen) and
// P_i the mean over tokens of score_i / (sum of scores), the loss of a sequence is sum_i f_i * P_i.
// Source: DeepSeek-V4 §2.1 (form of V3); training.md §2.6, §4.6.
struct BalanceLossArgs {
  TensorView loss;     // [n_sequences] f32, out; 0 for a sequence without tokens
  TensorView dlogits;  // [n_tokens, n_experts] f32, out: coefficient times its sum's gradient;
                       // empty: not wanted
  TensorView logits;   // [n_tokens, n_experts] f32
  TensorView experts;  // [n_tokens, topk] i32
  std::span<const std::int64_t> bounds;  // [n_sequences + 1]  rows, ascending from 0 to n_tokens
  float coefficient = 1;
};
inline constexpr KernelName<BalanceLossArgs> kBalanceLoss{"balance_loss"};

struct ExpertWeights {
  QuantTensor gate_proj, up_proj;  // [width, hidden]
  QuantTensor down_proj;           // [hidden, width]
};

// How often the clamps of SwiGLU cut something off, of experts that have a limit.
struct ClampCounts {
  std::int64_t gate_above = 0, up_above = 0, up_below = 0;
  std::int64_t n_values = 0;  // gates seen; as many ups

  ClampCounts& operator+=(const ClampCounts& x) {
    gate_above += x.gate_above, up_above += x.up_above, up_below += x.up_below;
    n_values += x.n_values;
    return *this;
  }
  friend bool operator==(const ClampCounts&, const ClampCounts&) = default;
};

// y = sum over chosen experts, ascending, of down(w * silu(min(gate, limit)) * clamp(up, +-limit)),
// then the shared experts with weight 1. The routing weight enters before down_proj; every linear
// of an FP8 or FP4 weight rounds its bf16 input to E4M3.  Source: architecture.md §3.7.
struct MoeExpertsArgs {
  TensorView y;        // [n_tokens, hidden]  out
  TensorView x;        // [n_tokens, hidden]  bf16 | f32
  TensorView experts;  // [n_tokens, topk]    i32
  TensorView weights;  // [n_tokens, topk]    f32
  std::span<const ExpertWeights> routed;
  std::span<const ExpertWeights> shared;
  float swiglu_limit = 0;  // 0: no clamp
  float shared_swiglu_limit = 0;
  ClampCounts* clamps = nullptr;  // in memory of the device; added to
};
inline constexpr KernelName<MoeExpertsArgs> kMoeExperts{"moe_experts"};

// load[e] += how many of `experts` are e.
struct ExpertLoadArgs {
  TensorView load;     // [n_experts] i64, in/out
  TensorView experts;  // any shape  i32, each in [0, n_experts)
};
inline constexpr KernelName<ExpertLoadArgs> kExpertLoad{"expert_load"};

// Where the gradients of an expert collect, f32, of the shapes of ExpertWeights; empty: not wanted.
struct ExpertGradients {
  TensorView gate_proj, up_proj, down_proj;
};

// Gradients of moe_experts, straight through its roundings, with the pre-activations computed once
// more. Those of experts are added to; an expert that no token chose is not touched.
// Source: training.md §4.7.
struct MoeExpertsBackwardArgs {
  TensorView dx;        // [n_tokens, hidden]  f32, out; empty: not wanted
  TensorView dweights;  // [n_tokens, topk]    f32, out; empty: not wanted
  TensorView dy;        // [n_tokens, hidden]  f32
  TensorView x;         // [n_tokens, hidden]  bf16 | f32
  TensorView experts;   // [n_tokens, topk]    i32
  TensorView weights;   // [n_tokens, topk]    f32
  std::span<const ExpertWeights> routed, shared;
  std::span<const ExpertGradients> drouted, dshared;
  float swiglu_limit = 0;
  float shared_swiglu_limit = 0;
};
inline constexpr KernelName<MoeExpertsBackwardArgs> kMoeExpertsBackward{"moe_experts_backward"};

}  // namespace hadal
