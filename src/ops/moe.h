#pragma once

#include "kernels/moe.h"
#include "ops/exec_context.h"

namespace hadal::ops {

struct Routing {
  Tensor experts;  // [n_tokens, topk] i32
  Tensor weights;  // [n_tokens, topk] f32
};

// By learned scores: logits [n_tokens, n_experts] f32, bias [n_experts] f32 for the choice only.
[[nodiscard]] Routing route_learned(ExecContext& ctx, const Tensor& logits, const Tensor& bias,
                                    std::int64_t topk, float routed_scaling_factor);
// By table: expert_table [vocab, topk] i32; the weights still come from the logits.
[[nodiscard]] Routing route_hashed(ExecContext& ctx, const Tensor& logits, const Tensor& token_ids,
                                   const Tensor& expert_table, float routed_scaling_factor);

struct SwigluLimits {
  float routed = 0;  // 0: no clamp
  float shared = 0;
};

// Sum of the chosen experts, ascending, then of the shared ones (see kernels/moe.h).
//   x, return  [n_tokens, hidden] activation dtype
[[nodiscard]] Tensor moe_experts(ExecContext& ctx, const Tensor& x, const Routing& routing,
                                 std::span<const ExpertWeights> routed,
                                 std::span<const ExpertWeights> shared, SwigluLimits limits);

}  // namespace hadal::ops
