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

// Folds kWidth pairs of values: lanes whose number has the bit kWidth keep the upper half, what a
// lane gives away is what its partner keeps. Recursive, so that every index is a constant.
template <int kWidth, int kPadded>
__device__ __forceinline__ void fold_halves(float (&v)[kPadded]) {
  const bool upper = (threadIdx.x & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float give = upper ? v[i] : v[i + kWidth], keep = upper ? v[i + kWidth] : v[i];
    v[i] = keep + __shfl_xor_sync(0xffffffffu, give, kWidth);
  }
  if constexpr (kWidth > 1) fold_halves<kWidth / 2>(v);
}

// Sums of kN values over a warp, 2 < kN <= 32, for fewer shuffles than as many warp_sums: lane l
// gets the sum of values[l]; what lanes from kN on get means nothing.
template <int kN>
__device__ __forceinline__ float lane_totals(const float (&values)[kN]) {
  static_assert(2 < kN && kN <= 32);
  constexpr int kPadded = kN > 16 ? 32 : (kN > 8 ? 16 : (kN > 4 ? 8 : 4));
  float v[kPadded];
#pragma unroll
  for (int i = 0; i < kPadded; ++i) v[i] = i < kN ? values[i < kN ? i : 0] : 0.0f;
  fold_halves<kPadded / 2>(v);
#pragma unroll
  for (int lane = kPadded; lane < 32; lane *= 2) {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], lane);
  }
  return v[0];
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
