// The router's score and its slope: kernels/cpu/router_score.h, with CUDA's expf and log1pf, which
// are within 2 ulp.  Source: training.md §2.5, §4.6.
#pragma once

namespace hadal::kernels::cuda {

__device__ __forceinline__ float sqrt_softplus(float v) {
  return sqrtf(v > 20.0f ? v : log1pf(expf(v)));
}
// d sqrt_softplus / dv at v, where it is `score`. Far below zero both are tiny and their quotient
// is e^(v/2) / 2.
__device__ __forceinline__ float sqrt_softplus_slope(float v, float score) {
  if (v < -15.0f) return 0.5f * expf(0.5f * v);
  return 0.5f / (score * (1.0f + expf(-v)));
}

}  // namespace hadal::kernels::cuda
