#include "model/moe.h"

#include <fmt/format.h>

#include "ops/linear.h"

namespace hadal::model {

namespace {
ExpertWeights expert(const BoundWeights& weights, const std::string& prefix) {
  return {.gate_proj = weights.linear(prefix + ".w1.weight"),
          .up_proj = weights.linear(prefix + ".w3.weight"),
          .down_proj = weights.linear(prefix + ".w2.weight")};
}
}  // namespace

Moe::Moe(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
         const BoundWeights& weights, const std::string& prefix)
    : layer_index_(layer_index),
      gate_(weights.linear(prefix + ".gate.weight")),
      topk_(config.num_experts_per_tok),
      scaling_factor_(config.routed_scaling_factor),
      limits_{.routed = config.swiglu_limit,
              .shared = config.clamp_shared_experts ? config.swiglu_limit : 0.0f} {
  if (layer.hash_routed)
    expert_table_ = weights.plain(prefix + ".gate.tid2eid");
  else
    bias_ = weights.plain(prefix + ".gate.bias");
  for (std::int64_t e = 0; e < config.n_routed_experts; ++e) {
    routed_.push_back(expert(weights, fmt::format("{}.experts.{}", prefix, e)));
  }
  if (config.n_shared_experts > 0) shared_.push_back(expert(weights, prefix + ".shared_experts"));
}

ops::Routing Moe::route(ExecContext& ctx, const Step& step, const Tensor& logits) const {
  if (StepObserver* observer = step.observer) {
    if (const Tensor forced = observer->forced_experts(layer_index_)) {
      return ops::route_forced(ctx, logits, forced, scaling_factor_);
    }
  }
  if (expert_table_) {
    return ops::route_hashed(ctx, logits, step.token_ids, expert_table_, scaling_factor_);
  }
  return ops::route_learned(ctx, logits, bias_, topk_, scaling_factor_);
}

Tensor Moe::forward(ExecContext& ctx, const Step& step, const Tensor& x) const {
  const Tensor logits = ops::linear_f32(ctx, x, gate_);
  const ops::Routing routing = route(ctx, step, logits);
  ClampCounts* clamps = nullptr;
  if (step.observer != nullptr) {
    step.observer->routed(ctx, layer_index_, logits, routing);
    clamps = step.observer->clamp_counts(layer_index_);
  }
  return ops::moe_experts(ctx, x, routing, routed_, shared_, limits_, clamps);
}

}  // namespace hadal::model
