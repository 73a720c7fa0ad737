// Values of stored KV rows, as the host codec of kernels/cpu/kv_rows.cpp reads them.
#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/paged_rows.cuh"

namespace hadal::kernels::cuda {

inline constexpr int kKvScaleColumns = 64;   // fp8_mixed: values that share a scale
inline constexpr int kFp4ScaleColumns = 32;  // fp4

// Value c of a row of any format.
__device__ __forceinline__ float decode_value(const DeviceRows& rows, const std::byte* data,
                                              const std::byte* scales, int c) {
  const auto byte = [](const std::byte* p) { return *reinterpret_cast<const std::uint8_t*>(p); };
  if (rows.kind == KvRowKind::f32) return reinterpret_cast<const float*>(data)[c];
  if (rows.kind == KvRowKind::fp4) {
    const std::uint32_t code = byte(data + c / 2) >> (4 * (c & 1));
    return e2m1_to_float(code) * ue8m0_to_float(byte(scales + c / kFp4ScaleColumns));
  }
  const int nope = rows.width - rows.rope;
  if (c < nope) {
    return e4m3_to_float(byte(data + c)) * ue8m0_to_float(byte(scales + c / kKvScaleColumns));
  }
  const std::byte* p = data + nope + 2 * (c - nope);  // no alignment: nope may be odd
  return __uint_as_float((std::uint32_t{byte(p)} | std::uint32_t{byte(p + 1)} << 8) << 16);
}

__device__ __forceinline__ std::uint32_t bits_of(__nv_bfloat162 x) {
  return *reinterpret_cast<const std::uint32_t*>(&x);
}
__device__ __forceinline__ __nv_bfloat162 bf16x2_of(std::uint32_t x) {
  return *reinterpret_cast<const __nv_bfloat162*>(&x);
}

// 2^(byte - 127) twice, as bf16, which has f32's exponents: exact, byte 0 a subnormal.
__device__ __forceinline__ __nv_bfloat162 ue8m0_bf16x2(std::uint8_t byte) {
  const std::uint32_t one = byte == 0 ? 0x0040u : std::uint32_t{byte} << 7;
  return bf16x2_of(one | one << 16);
}

// Four E4M3 codes times a power of two, as bf16. A code's exponent and mantissa, moved to where
// bf16 has them, are its value times 2^-120; both products only move exponents.
__device__ __forceinline__ uint2 e4m3x4_to_bf16(std::uint32_t codes, __nv_bfloat162 scale) {
  const __nv_bfloat162 unshift = bf16x2_of(0x7b807b80u);  // 2^120
  const auto pair = [&](std::uint32_t two) {              // codes in bytes 0 and 2
    const std::uint32_t moved = (two & 0x00800080u) << 8 | (two & 0x007f007fu) << 4;
    return bits_of(__hmul2(__hmul2(bf16x2_of(moved), unshift), scale));
  };
  return make_uint2(pair(__byte_perm(codes, 0, 0x4140)), pair(__byte_perm(codes, 0, 0x4342)));
}

// Eight E2M1 codes (the lowest column in the lowest nibble) times a power of two, as bf16.
__device__ __forceinline__ uint4 e2m1x8_to_bf16(std::uint32_t codes, __nv_bfloat162 scale) {
  const __nv_bfloat162 unshift = bf16x2_of(0x7e807e80u);  // 2^126
  const auto pair = [&](std::uint32_t two) {              // codes in the low nibbles of bytes 0, 2
    const std::uint32_t moved = (two & 0x00080008u) << 12 | (two & 0x00070007u) << 6;
    return bits_of(__hmul2(__hmul2(bf16x2_of(moved), unshift), scale));
  };
  // Columns 0, 2, 4, 6 in the low nibbles of the bytes, then 1, 3, 5, 7.
  const std::uint32_t even = codes & 0x0f0f0f0fu, odd = codes >> 4 & 0x0f0f0f0fu;
  const std::uint32_t c01 = __byte_perm(even, odd, 0x0400), c23 = __byte_perm(even, odd, 0x0501);
  const std::uint32_t c45 = __byte_perm(even, odd, 0x0602), c67 = __byte_perm(even, odd, 0x0703);
  // Selector nibbles: byte 0 and byte 2 are what counts; the others are masked off.
  return make_uint4(pair(c01), pair(c23), pair(c45), pair(c67));
}

}  // namespace hadal::kernels::cuda
