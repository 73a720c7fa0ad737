#include "ops/moe.h"

namespace hadal::ops {

namespace {
Routing empty_routing(ExecContext& ctx, std::int64_t n_tokens, std::int64_t topk) {
  return {ctx.empty({n_tokens, topk}, DType::i32), ctx.empty({n_tokens, topk}, DType::f32)};
}
}  // namespace

Routing route_learned(ExecContext& ctx, const Tensor& logits, const Tensor& bias, std::int64_t topk,
                      float routed_scaling_factor) {
  expect_shape(bias, {logits.dim(1)}, "route_learned: bias");
  Routing r = empty_routing(ctx, logits.dim(0), topk);
  ctx.launch(kMoeRoute, ctx.activation_dtype(),
             MoeRouteArgs{.experts = r.experts,
                          .weights = r.weights,
                          .logits = logits,
                          .bias = bias,
                          .token_ids = {},
                          .expert_table = {},
                          .routed_scaling_factor = routed_scaling_factor});
  return r;
}

Routing route_hashed(ExecContext& ctx, const Tensor& logits, const Tensor& token_ids,
                     const Tensor& expert_table, float routed_scaling_factor) {
  expect_shape(token_ids, {logits.dim(0)}, "route_hashed: token_ids");
  Routing r = empty_routing(ctx, logits.dim(0), expert_table.dim(1));
  ctx.launch(kMoeRoute, ctx.activation_dtype(),
             MoeRouteArgs{.experts = r.experts,
                          .weights = r.weights,
                          .logits = logits,
                          .bias = {},
                          .token_ids = token_ids,
                          .expert_table = expert_table,
                          .routed_scaling_factor = routed_scaling_factor});
  return r;
}

Tensor moe_experts(ExecContext& ctx, const Tensor& x, const Routing& routing,
                   std::span<const ExpertWeights> routed, std::span<const ExpertWeights> shared,
                   SwigluLimits limits) {
  Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kMoeExperts, x.dtype(),
             MoeExpertsArgs{.y = y,
                            .x = x,
                            .experts = routing.experts,
                            .weights = routing.weights,
                            .routed = routed,
                            .shared = shared,
                            .swiglu_limit = limits.routed,
                            .shared_swiglu_limit = limits.shared});
  return y;
}

}  // namespace hadal::ops
