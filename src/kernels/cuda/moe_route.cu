// A warp a token. Scores are compared as unsigned integers of the same order, so that the largest
// of a warp is one instruction; the lowest expert that has it is another.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/router_score.cuh"
#include "kernels/moe.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kMaxSharedBytes = 200 * 1024;

// Grows as x does; 0 is below every number.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  const std::uint32_t u = __float_as_uint(x + 0.0f);  // no -0: it ties with 0
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

struct Route {
  std::int32_t* experts;
  float* weights;
  const float *logits, *bias;
  const std::int32_t *token_ids, *table;  // of experts, by token id; null: chosen by score
  const std::int32_t* forced;
  std::int64_t n_tokens;
  int n_experts, topk;
  float scaling;
};

__global__ void __launch_bounds__(kWarps * 32) moe_route_kernel(const Route r) {
  extern __shared__ float shared[];  // a warp: [n_experts] scores, [n_experts] keys, [topk] scores
  constexpr unsigned kAll = 0xffffffffu;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + warp;
  if (token >= r.n_tokens) return;
  float* const scores = shared + warp * (2 * r.n_experts + r.topk);
  auto* const keys = reinterpret_cast<std::uint32_t*>(scores + r.n_experts);
  float* const chosen = scores + 2 * r.n_experts;
  const float* const logits = r.logits + token * r.n_experts;
  std::int32_t* const experts = r.experts + token * r.topk;

  const std::int32_t* given = r.forced != nullptr ? r.forced + token * r.topk : nullptr;
  if (given == nullptr && r.table != nullptr) {
    given = r.table + std::int64_t{r.token_ids[token]} * r.topk;
  }
  if (given != nullptr) {
    for (int k = lane; k < r.topk; k += 32) {
      const std::int32_t expert = given[k];
      experts[k] = expert;
      chosen[k] = sqrt_softplus(logits[expert]);
    }
  } else {
    for (int e = lane; e < r.n_experts; e += 32) {
      scores[e] = sqrt_softplus(logits[e]);
      keys[e] = ordered(__fadd_rn(scores[e], r.bias[e]));
    }
    for (int k = 0; k < r.topk; ++k) {  // a lane reads and clears its own keys: no sync
      std::uint32_t best = 0;
      std::uint32_t at = static_cast<std::uint32_t>(r.n_experts);
      for (int e = lane; e < r.n_experts; e += 32) {
        if (keys[e] > best) best = keys[e], at = static_cast<std::uint32_t>(e);
      }
      const std::uint32_t top = __reduce_max_sync(kAll, best);
      const std::uint32_t expert =
          __reduce_min_sync(kAll, best == top ? at : static_cast<std::uint32_t>(r.n_experts));
      if (expert % 32 == static_cast<std::uint32_t>(lane)) {
        experts[k] = static_cast<std::int32_t>(expert);
        chosen[k] = scores[expert];
        keys[expert] = 0;
      }
    }
  }
  __syncwarp();
  float sum = 0.0f;
  for (int k = 0; k < r.topk; ++k) sum += chosen[k];
  for (int k = lane; k < r.topk; k += 32) {
    r.weights[token * r.topk + k] = chosen[k] / sum * r.scaling;
  }
}

}  // namespace

void moe_route(Stream& stream, const MoeRouteArgs& a) {
  const std::int64_t n_tokens = a.logits.dim(0), n_experts = a.logits.dim(1);
  const std::int64_t topk = a.experts.dim(1);
  const bool by_score = !a.forced && !a.expert_table;
  if (by_score) HADAL_CHECK(topk <= n_experts);
  const std::int64_t bytes = kWarps * (2 * n_experts + topk) * 4;
  if (bytes > kMaxSharedBytes) {
    throw Error(ErrorCode::unsupported,
                "the CUDA router keeps the scores of four tokens in shared memory, which has room "
                "for 6000 experts; this model has more: run it with --device cpu");
  }
  const Route r{.experts = data<std::int32_t>(a.experts),
                .weights = data<float>(a.weights),
                .logits = data<const float>(a.logits),
                .bias = by_score ? data<const float>(a.bias) : nullptr,
                .token_ids = a.expert_table ? data<const std::int32_t>(a.token_ids) : nullptr,
                .table = a.expert_table ? data<const std::int32_t>(a.expert_table) : nullptr,
                .forced = a.forced ? data<const std::int32_t>(a.forced) : nullptr,
                .n_tokens = n_tokens,
                .n_experts = static_cast<int>(n_experts),
                .topk = static_cast<int>(topk),
                .scaling = a.routed_scaling_factor};
  launch(stream, "moe_route", moe_route_kernel,
         {dim3(blocks_for(n_tokens, kWarps)), dim3(kWarps * 32), static_cast<int>(bytes)}, r);
}

}  // namespace hadal::kernels::cuda
