// Four neighbouring values at a time.
#pragma once

#include "kernels/cuda/device/convert.cuh"

namespace hadal::kernels::cuda {

// The addresses are multiples of four elements.
__device__ __forceinline__ float4 load_four(const float* x) {
  return *reinterpret_cast<const float4*>(x);
}
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* x) {
  const uint2 v = *reinterpret_cast<const uint2*>(x);
  return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
          __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)};
}
__device__ __forceinline__ void put_four(float* y, float4 v) {
  *reinterpret_cast<float4*>(y) = v;
}
__device__ __forceinline__ void put_four(__nv_bfloat16* y, float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y),
                       high = __floats2bfloat162_rn(v.z, v.w);
  *reinterpret_cast<uint2*>(y) = {*reinterpret_cast<const std::uint32_t*>(&low),
                                  *reinterpret_cast<const std::uint32_t*>(&high)};
}

}  // namespace hadal::kernels::cuda
