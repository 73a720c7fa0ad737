// Every code of every small format, both ways.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace hadal {
namespace {

// The format's definition, in double.
double e4m3_by_definition(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(E4m3, DecodesAll256Codes) {
  for (int code = 0; code < 256; ++code) {
    const float v = to_float(f8_e4m3{static_cast<std::uint8_t>(code)});
    if ((code & 0x7f) == 0x7f)
      EXPECT_TRUE(std::isnan(v)) << code;
    else
      EXPECT_EQ(static_cast<double>(v), e4m3_by_definition(code)) << code;
  }
}

TEST(E4m3, EncodesEveryValueToItself) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    const f8_e4m3 x{static_cast<std::uint8_t>(code)};
    EXPECT_EQ(to_e4m3(to_float(x)).bits, x.bits);
  }
  EXPECT_EQ(to_e4m3(NAN).bits, 0x7f);
}

// Between neighbours a < b: below the middle to a, above to b, the middle to the even code.
TEST(E4m3, RoundsToNearestTiesToEvenAndSaturates) {
  for (int code = 0; code < 0x7e; ++code) {
    const float a = to_float(f8_e4m3{static_cast<std::uint8_t>(code)});
    const float b = to_float(f8_e4m3{static_cast<std::uint8_t>(code + 1)});
    const float middle = (a + b) / 2;
    for (const float sign : {1.0f, -1.0f}) {
      const int bit = sign < 0 ? 0x80 : 0;
      EXPECT_EQ(to_e4m3(sign * middle).bits, bit | ((code & 1) == 0 ? code : code + 1));
      EXPECT_EQ(to_e4m3(sign * std::nextafter(middle, 0.0f)).bits, bit | code);
      EXPECT_EQ(to_e4m3(sign * std::nextafter(middle, 1e9f)).bits, bit | (code + 1));
    }
  }
  for (const float big : {448.0f, 449.0f, 1e30f, INFINITY}) {
    EXPECT_EQ(to_e4m3(big).bits, 0x7e);
    EXPECT_EQ(to_e4m3(-big).bits, 0xfe);
  }
}

TEST(E2m1, AllCodesAndTies) {
  const float values[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (std::uint8_t code = 0; code < 16; ++code) {
    const float v = e2m1_to_float(code);
    EXPECT_EQ(std::fabs(v), values[code & 7]);
    EXPECT_EQ(std::signbit(v), (code & 8) != 0);
    EXPECT_EQ(to_e2m1(v), code);
  }
  const std::pair<float, int> ties[] = {{0.25f, 0}, {0.75f, 2}, {1.25f, 2}, {1.75f, 4},
                                        {2.5f, 4},  {3.5f, 6},  {5.0f, 6}};
  for (const auto& [x, code] : ties) {
    EXPECT_EQ(to_e2m1(x), code);
    EXPECT_EQ(to_e2m1(-x), code | 8);
    EXPECT_EQ(to_e2m1(std::nextafter(x, 100.0f)),
              code % 2 == 0 && x < values[code] ? code : code + 1);
  }
  EXPECT_EQ(to_e2m1(1e9f), 7);
  EXPECT_EQ(to_e2m1(-0.1f), 8);  // the sign survives rounding to zero
}

TEST(Ue8m0, AllBytes) {
  for (int byte = 0; byte < 255; ++byte) {
    EXPECT_EQ(static_cast<double>(to_float(ue8m0{static_cast<std::uint8_t>(byte)})),
              std::ldexp(1.0, byte - 127));
  }
  EXPECT_TRUE(std::isnan(to_float(ue8m0{255})));
}

TEST(Bf16, RoundTripsEveryCodeAndRoundsToEven) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const bf16 x{static_cast<std::uint16_t>(code)};
    const float v = to_float(x);
    if (std::isnan(v))
      EXPECT_TRUE(std::isnan(to_float(to_bf16(v))));
    else
      EXPECT_EQ(to_bf16(v).bits, x.bits);
  }
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, to_bf16(1.0f).bits);          // tie, even below
  EXPECT_EQ(to_bf16(1.0f + 3 * 0x1p-8f).bits, to_bf16(1.0f).bits + 2);  // tie, even above
  EXPECT_EQ(to_float(to_bf16(3.4e38f)), INFINITY);
}

TEST(F16, Decodes) {
  EXPECT_EQ(f16_to_float(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_float(0xc000), -2.0f);
  EXPECT_EQ(f16_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(f16_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(f16_to_float(0x7c00), INFINITY);
  EXPECT_TRUE(std::isnan(f16_to_float(0x7e00)));
}

// The examples of architecture.md, appendix B, and every bf16 mantissa at two exponents.
TEST(ScaleExponents, AreTheSmallestThatFit) {
  EXPECT_EQ(e4m3_scale_exponent(3.0f), -7);
  EXPECT_EQ(e4m3_scale_exponent(0.0f), -22);
  EXPECT_EQ(e4m3_scale_exponent(448.0f), 0);
  EXPECT_EQ(e2m1_scale_exponent(5.0f), 0);
  EXPECT_EQ(e2m1_scale_exponent(6.0f), 0);
  EXPECT_EQ(e2m1_scale_exponent(0.0f), -126);
  for (const int exponent : {-3, 5}) {
    for (int mantissa = 0; mantissa < 128; ++mantissa) {
      const double amax = std::ldexp(128 + mantissa, exponent - 7);
      const int e4 = e4m3_scale_exponent(static_cast<float>(amax));
      EXPECT_LE(amax, std::ldexp(448, e4));
      EXPECT_GT(amax, std::ldexp(448, e4 - 1));
      const int e2 = e2m1_scale_exponent(static_cast<float>(amax));
      EXPECT_LE(amax, std::ldexp(6, e2));
      EXPECT_GT(amax, std::ldexp(6, e2 - 1));
    }
  }
}

TEST(DType, NamesRoundTrip) {
  for (const DType d :
       {DType::f64, DType::f32, DType::f16, DType::bf16, DType::f8_e4m3, DType::f4_e2m1,
        DType::ue8m0, DType::i64, DType::i32, DType::i8, DType::u8}) {
    EXPECT_EQ(parse_dtype(to_string(d)), d);
  }
  EXPECT_FALSE(parse_dtype("float32").has_value());
}

}  // namespace
}  // namespace hadal
