#include "kernels/cpu/dot_tables.h"

#include <bit>

#include "core/dtype.h"

namespace hadal::kernels::cpu {

namespace {

constexpr float kNaN = std::bit_cast<float>(0x7fc00000u);

constexpr float scale_value(int byte) {
  if (byte == 255) return kNaN;
  return byte == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<std::uint32_t>(byte) << 23);
}

// a * b as the hardware rounds it, for a constant expression: a compiler may refuse one that
// overflows or meets a NaN.
constexpr float product(float a, float b) {
  if (a != a || b != b) return kNaN;
  const double exact = static_cast<double>(a) * static_cast<double>(b);
  const float sign = std::bit_cast<std::uint32_t>(a) >> 31 != 0 ? -1.0f : 1.0f;
  if (exact >= 0x1p128 || exact <= -0x1p128) return sign * std::bit_cast<float>(0x7f800000u);
  return static_cast<float>(exact);
}

constexpr std::uint16_t bf16_of_exact(float v) {
  const auto u = std::bit_cast<std::uint32_t>(v);
  const bool subnormal = (u & 0x7f800000u) == 0;
  return static_cast<std::uint16_t>((subnormal ? u & 0x80000000u : u) >> 16);
}

constexpr float e4m3_magnitude(int code) {
  if (code == 127) return kNaN;
  const int exponent = code >> 3, mantissa = code & 7;
  float v = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) * 0x1p-9f;
  for (int e = 1; e < exponent; ++e) v *= 2.0f;
  return v;
}

constexpr Fp4F32Tables fp4_f32() {
  Fp4F32Tables t{};
  for (int s = 0; s < 256; ++s) {
    for (int c = 0; c < 16; ++c) t.row[s][c] = product(kE2m1Values[c], scale_value(s));
  }
  return t;
}

constexpr Fp4Bf16Tables fp4_bf16() {
  Fp4Bf16Tables t{};
  for (int s = 0; s < 256; ++s) {
    for (int c = 0; c < 32; ++c) {
      t.row[s][c] = bf16_of_exact(product(kE2m1Values[c & 15], scale_value(s)));
    }
  }
  return t;
}

constexpr Fp8Bf16Tables fp8_bf16() {
  Fp8Bf16Tables t{};
  float magnitude[128] = {};
  for (int c = 0; c < 128; ++c) magnitude[c] = e4m3_magnitude(c);
  for (int s = 0; s < 256; ++s) {
    for (int c = 0; c < 128; ++c) {
      const std::uint16_t v = bf16_of_exact(product(magnitude[c], scale_value(s)));
      t.row[s][c] = static_cast<std::uint8_t>(v & 0xff);
      t.row[s][128 + c] = static_cast<std::uint8_t>(v >> 8);
    }
  }
  return t;
}

}  // namespace

constinit const Fp4F32Tables kFp4F32Tables = fp4_f32();
constinit const Fp4Bf16Tables kFp4Bf16Tables = fp4_bf16();
constinit const Fp8Bf16Tables kFp8Bf16Tables = fp8_bf16();

}  // namespace hadal::kernels::cpu
