#pragma once

#include <vector>

#include "kernels/moe.h"
#include "ops/exec_context.h"

namespace hadal::ops {

struct Routing {
  Tensor experts;  // [n_tokens, topk] i32
  Tensor weights;  // [n_tokens, topk] f32
};

// The weights are differentiable in the logits, through the scores of the experts that were chosen;
// a choice itself is kept, never made again.
// By learned scores: logits [n_tokens, n_experts] f32, bias [n_experts] f32 for the choice only.
[[nodiscard]] Routing route_learned(ExecContext& ctx, const Tensor& logits, const Tensor& bias,
                                    std::int64_t topk, float routed_scaling_factor);
// By table: expert_table [vocab, topk] i32; the weights still come from the logits.
[[nodiscard]] Routing route_hashed(ExecContext& ctx, const Tensor& logits, const Tensor& token_ids,
                                   const Tensor& expert_table, float routed_scaling_factor);
// By order: experts [n_tokens, topk] i32, chosen elsewhere (DeepSeek-V4 §4.2.3, Anticipatory
// Routing); the weights still come from the logits. A routing's own experts give its own bits.
// Throws invalid_argument on an expert outside [0, n_experts).
[[nodiscard]] Routing route_forced(ExecContext& ctx, const Tensor& logits, const Tensor& experts,
                                   float routed_scaling_factor);

// Adds to load [n_experts] i64 how many tokens chose each expert.
void add_expert_load(ExecContext& ctx, const Routing& routing, const Tensor& load);

// Sequence-wise balance loss of one layer (kernels/moe.h), and, with a tape, coefficient times the
// gradient of its sum in the logits. A loss: nothing is differentiable through its result.
//   logits  [n_tokens, n_experts] f32
//   bounds  [n_sequences + 1]  rows where samples begin, ascending from 0 to n_tokens; samples, not
//           packed rows
//   return  [n_sequences] f32, unscaled; 1 when scores and choices are even
[[nodiscard]] Tensor balance_loss(ExecContext& ctx, const Tensor& logits, const Routing& routing,
                                  std::span<const std::int64_t> bounds, float coefficient);

struct SwigluLimits {
  float routed = 0;  // 0: no clamp
  float shared = 0;
};

// Sum of the chosen experts, ascending, then of the shared ones (see kernels/moe.h).
//   x, return  [n_tokens, hidden] activation dtype
//   clamps     in memory of the device, added to; null: nobody counts
// Differentiable in x, the routing's weights and every matrix, straight through the roundings;
// saves x and the weights, and computes the pre-activations again.
[[nodiscard]] Tensor moe_experts(ExecContext& ctx, const Tensor& x, const Routing& routing,
                                 std::span<const ExpertWeights> routed,
                                 std::span<const ExpertWeights> shared, SwigluLimits limits,
                                 ClampCounts* clamps = nullptr);

}  // namespace hadal::ops
