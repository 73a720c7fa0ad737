// Sums and maxima over a warp or a block, in an order that depends on nothing but the block's size.
#pragma once

namespace hadal::kernels::cuda {

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// Every thread of the block gets the result. `shared` holds one value a warp and may be used again
// after the call. All threads take part.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
  constexpr int kWarps = kThreads / 32;
  x = warp_sum(x);
  if constexpr (kWarps == 1) return x;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += shared[w];
  __syncthreads();
  return sum;
}
template <int kThreads>
__device__ __forceinline__ float block_max(float x, float* shared) {
  constexpr int kWarps = kThreads / 32;
  x = warp_max(x);
  if constexpr (kWarps == 1) return x;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float top = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) top = fmaxf(top, shared[w]);
  __syncthreads();
  return top;
}

}  // namespace hadal::kernels::cuda
