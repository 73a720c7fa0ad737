// Every block counts its part in shared memory, then adds its counts to all of them: integers, so
// the order does not matter.
#include "kernels/moe.h"

#include <algorithm>

#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPerBlock = 4096;
constexpr std::int64_t kMostExperts = 48 * 1024 / 4;  // that shared memory counts

__global__ void __launch_bounds__(kThreads)
    expert_load_kernel(unsigned long long* load, const std::int32_t* experts, std::int64_t n,
                       int n_experts) {
  extern __shared__ unsigned counts[];
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  const std::int64_t begin = std::int64_t{blockIdx.x} * kPerBlock;
  const std::int64_t end = min(n, begin + kPerBlock);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const std::int32_t e = experts[i];
    if (e >= 0 && e < n_experts) atomicAdd(counts + e, 1u);
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) {
    if (counts[e] != 0) atomicAdd(load + e, static_cast<unsigned long long>(counts[e]));
  }
}

}  // namespace

void expert_load(Stream& stream, const ExpertLoadArgs& a) {
  const std::int64_t n_experts = a.load.numel();
  if (n_experts > kMostExperts) {
    throw Error(ErrorCode::unsupported, "expert_load: the GPU counts up to 12288 experts");
  }
  launch(stream, "expert_load", expert_load_kernel,
         {dim3(blocks_for(a.experts.numel(), kPerBlock)), dim3(kThreads),
          static_cast<int>(n_experts) * 4},
         reinterpret_cast<unsigned long long*>(data<std::int64_t>(a.load)),
         static_cast<const std::int32_t*>(data<std::int32_t>(a.experts)), a.experts.numel(),
         static_cast<int>(n_experts));
}

}  // namespace hadal::kernels::cuda
