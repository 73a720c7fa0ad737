#pragma once

#include <span>

#include "core/quant.h"
#include "kernels/registry.h"

namespace hadal {

// Chooses experts and their weights: scores sqrt(softplus(logits)); the choice by score + bias (or
// by table), ties to the lower expert; the weights from unbiased scores, normalised and scaled.
// Source: DeepSeek-V4 §2.1; architecture.md §3.7.
struct MoeRouteArgs {
  TensorView experts;       // [n_tokens, topk]  out, i32, best first (table order when hashed)
  TensorView weights;       // [n_tokens, topk]  out, f32
  TensorView logits;        // [n_tokens, n_experts] f32
  TensorView bias;          // [n_experts] f32; empty when hashed
  TensorView token_ids;     // [n_tokens] i32; hashed only
  TensorView expert_table;  // [vocab, topk] i32; empty when learned
  float routed_scaling_factor = 1;
};
inline constexpr KernelName<MoeRouteArgs> kMoeRoute{"moe_route"};

struct ExpertWeights {
  QuantTensor gate_proj, up_proj;  // [width, hidden]
  QuantTensor down_proj;           // [hidden, width]
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
};
inline constexpr KernelName<MoeExpertsArgs> kMoeExperts{"moe_experts"};

}  // namespace hadal
