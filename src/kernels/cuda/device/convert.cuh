// Exact conversions and roundings on the device, the same functions as core/dtype.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace hadal::kernels::cuda {

__device__ __forceinline__ float load(float x) {
  return x;
}
__device__ __forceinline__ float load(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void put(float& y, float x) {
  y = x;
}
__device__ __forceinline__ void put(__nv_bfloat16& y, float x) {
  y = __float2bfloat16_rn(x);
}
template <class T>
__device__ __forceinline__ float rounded(float x) {
  T y;
  put(y, x);
  return load(y);
}

// E4M3: saturating, to nearest even.
__device__ __forceinline__ std::uint8_t to_e4m3(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ float e4m3_to_float(std::uint8_t x) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x, __NV_E4M3)));
}

// E2M1 code (low four bits) to its value: {0, .5, 1, 1.5, 2, 3, 4, 6}, bit 3 the sign. The code's
// exponent and mantissa bits, moved to where f32 has them, are the value times 2^-126.
__device__ __forceinline__ float e2m1_to_float(std::uint32_t code) {
  const float magnitude = __uint_as_float((code & 7u) << 22) * 0x1p126f;
  return __uint_as_float(__float_as_uint(magnitude) | ((code & 8u) << 28));
}

// 2^(byte - 127); byte 0 is 2^-127, a subnormal; 255 is NaN.
__device__ __forceinline__ float ue8m0_to_float(std::uint8_t x) {
  if (x == 255) return __uint_as_float(0x7fc00000u);
  return x == 0 ? 0x1p-127f : __uint_as_float(std::uint32_t{x} << 23);
}

__device__ __forceinline__ int ceil_log2(float x) {  // smallest e with x <= 2^e; x normal, positive
  const std::uint32_t u = __float_as_uint(x);
  return static_cast<int>(u >> 23) - 127 + ((u & 0x7fffffu) != 0 ? 1 : 0);
}
__device__ __forceinline__ float exp2_int(int e) {  // exact for -126 <= e <= 127
  return __uint_as_float(static_cast<std::uint32_t>(e + 127) << 23);
}
__device__ __forceinline__ int e4m3_scale_exponent(float amax) {
  return ceil_log2(fmaxf(amax, 1e-4f) * (1.0f / 448.0f));
}
__device__ __forceinline__ int e2m1_scale_exponent(float amax) {
  return ceil_log2(fmaxf(amax, 6.0f * 0x1p-126f) * (1.0f / 6.0f));
}

// Magnitude m >= 0 to the nearest E2M1 value, ties to the even code, at most 6.
__device__ __forceinline__ float round_e2m1_magnitude(float m) {
  const float unit = m < 2.0f ? 0.5f : (m < 4.0f ? 1.0f : 2.0f);
  const float inverse = m < 2.0f ? 2.0f : (m < 4.0f ? 1.0f : 0.5f);
  return fminf(rintf(m * inverse) * unit, 6.0f);
}

}  // namespace hadal::kernels::cuda
