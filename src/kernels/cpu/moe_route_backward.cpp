#include <algorithm>
#include <vector>

#include "kernels/cpu/router_score.h"
#include "kernels/moe.h"

namespace hadal::kernels::cpu {

void moe_route_backward(Stream& stream, const MoeRouteBackwardArgs& a) {
  const std::int64_t n_experts = a.logits.dim(1), topk = a.experts.dim(1);
  stream.pool().parallel_for(a.logits.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scores(static_cast<std::size_t>(topk));
    for (std::int64_t t = begin; t < end; ++t) {
      const float* logits = a.logits.data<const float>() + t * n_experts;
      const auto* experts = a.experts.data<const std::int32_t>() + t * topk;
      const float* dweights = a.dweights.data<const float>() + t * topk;
      float* dlogits = a.dlogits.data<float>() + t * n_experts;
      float sum = 0.0f, mean = 0.0f;  // of the scores; of dweights, weighted by them
      for (std::int64_t k = 0; k < topk; ++k) {
        const float score = sqrt_softplus(logits[experts[k]]);
        scores[static_cast<std::size_t>(k)] = score;
        sum += score;
        mean += dweights[k] * score;
      }
      mean /= sum;
      std::fill_n(dlogits, n_experts, 0.0f);
      for (std::int64_t k = 0; k < topk; ++k) {
        dlogits[experts[k]] +=
            a.routed_scaling_factor / sum * (dweights[k] - mean) *
            sqrt_softplus_slope(logits[experts[k]], scores[static_cast<std::size_t>(k)]);
      }
    }
  });
}

}  // namespace hadal::kernels::cpu
