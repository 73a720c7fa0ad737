// Element types and their exact host conversions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>

namespace hadal {

enum class DType : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  f8_e4m3,  // OCP E4M3FN: 4 exponent bits (bias 7), 3 mantissa bits, no infinity, 0x7f/0xff NaN
  f4_e2m1,  // two elements a byte, the lower column in the low nibble
  ue8m0,    // an exponent: 2^(byte-127), 255 is NaN
  i64,
  i32,
  i8,
  u8,
};

[[nodiscard]] int bits(DType dtype);               // of one element: 4 for f4_e2m1
[[nodiscard]] const char* to_string(DType dtype);  // "bf16", "f8_e4m3", ...
[[nodiscard]] std::optional<DType> parse_dtype(std::string_view name);  // inverse of to_string

struct bf16 {
  std::uint16_t bits = 0;
};
struct f8_e4m3 {
  std::uint8_t bits = 0;
};
struct ue8m0 {
  std::uint8_t bits = 0;
};

// bf16. Rounding is to nearest even; NaN stays NaN (quiet).
[[nodiscard]] inline float to_float(bf16 x) {
  return std::bit_cast<float>(std::uint32_t{x.bits} << 16);
}
[[nodiscard]] inline bf16 to_bf16(float x) {
  // Both results are formed and one is chosen, so that loops over this vectorise.
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (u >> 16) | 0x40u;
  return {static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}
[[nodiscard]] inline float round_to_bf16(float x) {
  return std::bit_cast<float>(std::uint32_t{to_bf16(x).bits} << 16);
}

// f16, for reading files that carry it.
[[nodiscard]] float f16_to_float(std::uint16_t half);

// E4M3FN. to_e4m3 saturates to +-448 and rounds to nearest even; NaN becomes 0x7f.
[[nodiscard]] inline float to_float(f8_e4m3 x) {
  const std::uint32_t magnitude = x.bits & 0x7fu;
  const std::uint32_t sign = std::uint32_t{x.bits & 0x80u} << 24;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  // Placed at the bottom of f32's exponent range the code is a subnormal or small normal whose
  // value is exactly 2^-120 times the true one; one exact multiplication restores it.
  const float tiny = std::bit_cast<float>(magnitude << 20);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(tiny * 0x1p120f) | sign);
}
[[nodiscard]] f8_e4m3 to_e4m3(float x);

// E2M1: codes 0..7 are {0, 0.5, 1, 1.5, 2, 3, 4, 6}, bit 3 is the sign. to_e2m1 saturates to +-6
// and rounds to nearest, ties to the even code; the sign survives rounding to zero.
inline constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
[[nodiscard]] inline float e2m1_to_float(std::uint8_t nibble) {
  return kE2m1Values[nibble & 15u];
}
[[nodiscard]] std::uint8_t to_e2m1(float x);

// UE8M0. Byte 0 is 2^-127, a subnormal float; byte 255 is NaN.
[[nodiscard]] inline float to_float(ue8m0 x) {
  if (x.bits == 255) return std::bit_cast<float>(0x7fc00000u);
  return x.bits == 0 ? 0x1p-127f : std::bit_cast<float>(std::uint32_t{x.bits} << 23);
}

// Smallest e with x <= 2^e, from the exponent bits (a float log2 may be off at powers of two).
// x must be positive, finite and normal.
[[nodiscard]] inline int ceil_log2(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  return static_cast<int>(u >> 23) - 127 + ((u & 0x7fffffu) != 0 ? 1 : 0);
}
[[nodiscard]] inline float exp2_int(int e) {  // exact 2^e for -126 <= e <= 127
  return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23);
}

// Scale exponent of a block with largest magnitude `amax`: the smallest e such that amax/2^e fits
// the format's largest value. The floors are the published ones.
// Source: architecture.md §5.1 (act_quant), §3.4.1 (kvquant64), §3.6.1 (fp4sim32).
[[nodiscard]] inline int e4m3_scale_exponent(float amax) {
  constexpr float kInv448 = 1.0f / 448.0f;  // rounds to 0x3B124925
  return ceil_log2((amax < 1e-4f ? 1e-4f : amax) * kInv448);
}
[[nodiscard]] inline int e2m1_scale_exponent(float amax) {
  constexpr float kInv6 = 1.0f / 6.0f;  // rounds to 0x3E2AAAAB
  constexpr float kFloor = 6.0f * 0x1p-126f;
  return ceil_log2((amax < kFloor ? kFloor : amax) * kInv6);
}

// The C++ type of a DType's element, for dispatch_* and TensorView::data<T>.
template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<f8_e4m3> {
  static constexpr DType value = DType::f8_e4m3;
};
template <>
struct DTypeOf<ue8m0> {
  static constexpr DType value = DType::ue8m0;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};

}  // namespace hadal
