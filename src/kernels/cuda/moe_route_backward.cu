// A warp a token: zeros everywhere, then the chosen experts' gradients.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/router_score.cuh"
#include "kernels/moe.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps * 32)
    moe_route_backward_kernel(float* dlogits, const float* dweights, const float* logits,
                              const std::int32_t* experts, std::int64_t n_tokens, int n_experts,
                              int topk, float scaling) {
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (token >= n_tokens) return;
  dlogits += token * n_experts;
  dweights += token * topk;
  logits += token * n_experts;
  experts += token * topk;
  for (int e = lane; e < n_experts; e += 32) dlogits[e] = 0.0f;
  // Of the scores; of dweights, weighted by them. Every lane, in the order of the choice.
  float sum = 0.0f, mean = 0.0f;
  for (int k = 0; k < topk; ++k) {
    const float score = sqrt_softplus(logits[experts[k]]);
    sum += score;
    mean += dweights[k] * score;
  }
  mean /= sum;
  __syncwarp();
  for (int k = lane; k < topk; k += 32) {
    // A forced choice may name an expert twice: the first place adds up all of them.
    const std::int32_t expert = experts[k];
    bool first = true;
    for (int i = 0; i < k; ++i) first = first && experts[i] != expert;
    if (!first) continue;
    const float logit = logits[expert];
    const float slope = sqrt_softplus_slope(logit, sqrt_softplus(logit));
    float total = 0.0f;
    for (int i = k; i < topk; ++i) {
      if (experts[i] == expert) total += scaling / sum * (dweights[i] - mean) * slope;
    }
    dlogits[expert] = total;
  }
}

}  // namespace

void moe_route_backward(Stream& stream, const MoeRouteBackwardArgs& a) {
  const std::int64_t n_tokens = a.logits.dim(0);
  launch(stream, "moe_route_backward", moe_route_backward_kernel,
         {dim3(blocks_for(n_tokens, kWarps)), dim3(kWarps * 32)}, data<float>(a.dlogits),
         data<const float>(a.dweights), data<const float>(a.logits),
         data<const std::int32_t>(a.experts), n_tokens, static_cast<int>(a.logits.dim(1)),
         static_cast<int>(a.experts.dim(1)), a.routed_scaling_factor);
}

}  // namespace hadal::kernels::cuda
