#include "core/dtype.h"

#include <array>

namespace hadal {

namespace {
struct DTypeInfo {
  DType dtype;
  const char* name;
  int bits;
};
constexpr std::array<DTypeInfo, 11> kDTypes = {{{DType::f64, "f64", 64},
                                                {DType::f32, "f32", 32},
                                                {DType::f16, "f16", 16},
                                                {DType::bf16, "bf16", 16},
                                                {DType::f8_e4m3, "f8_e4m3", 8},
                                                {DType::f4_e2m1, "f4_e2m1", 4},
                                                {DType::ue8m0, "ue8m0", 8},
                                                {DType::i64, "i64", 64},
                                                {DType::i32, "i32", 32},
                                                {DType::i8, "i8", 8},
                                                {DType::u8, "u8", 8}}};
}  // namespace

int bits(DType dtype) {
  return kDTypes[static_cast<std::size_t>(dtype)].bits;
}
const char* to_string(DType dtype) {
  return kDTypes[static_cast<std::size_t>(dtype)].name;
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (name == info.name) return info.dtype;
  }
  return std::nullopt;
}

float f16_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
}

f8_e4m3 to_e4m3(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint8_t>((u >> 24) & 0x80u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7f};
  if (magnitude >= 0x43e00000u) return {static_cast<std::uint8_t>(sign | 0x7eu)};  // >= 448
  if (magnitude < 0x3c800000u) {  // below 2^-6: multiples of 2^-9, ties to even by the f32 adder
    const float rounded = std::bit_cast<float>(magnitude) + 0x1p14f;  // ulp of 2^14 is 2^-9
    const auto code = std::bit_cast<std::uint32_t>(rounded) - 0x46800000u;
    return {static_cast<std::uint8_t>(sign | code)};  // code 8 is 2^-6, the smallest normal
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const std::uint32_t code = (rounded >> 20) - (120u << 3);
  return {static_cast<std::uint8_t>(sign | (code > 0x7eu ? 0x7eu : code))};
}

std::uint8_t to_e2m1(float x) {
  const std::uint8_t sign = std::signbit(x) ? 8 : 0;
  const float m = std::fabs(x);
  // Upper ends of the rounding intervals. A tie belongs to the even code, so the interval of an
  // even code is closed and that of an odd code open.
  std::uint8_t code = 7;
  if (m <= 0.25f)
    code = 0;
  else if (m < 0.75f)
    code = 1;
  else if (m <= 1.25f)
    code = 2;
  else if (m < 1.75f)
    code = 3;
  else if (m <= 2.5f)
    code = 4;
  else if (m < 3.5f)
    code = 5;
  else if (m <= 5.0f)
    code = 6;
  return static_cast<std::uint8_t>(sign | code);
}

}  // namespace hadal
