#include "core/quant.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/rng.h"

namespace hadal {
namespace {

Tensor random_matrix(std::int64_t rows, std::int64_t cols, float spread) {
  Rng rng(11);
  Tensor w = Tensor::empty({rows, cols}, DType::f32);
  for (std::int64_t i = 0; i < w.numel(); ++i) w.data<float>()[i] = spread * rng.next_normal();
  return w;
}

std::vector<float> dequantised(const QuantTensor& q) {
  std::vector<float> out(static_cast<std::size_t>(q.data.numel()));
  dequantize_rows(q, 0, q.rows(), out.data());
  return out;
}

// Half a step of the largest binade, relative to the block's largest value: 1/3 of it for E2M1
// (steps of 2 below 6 with the scale at worst twice too large), 1/16 for E4M3.
TEST(Quantize, ErrorStaysWithinHalfAStepOfTheBlock) {
  const Tensor w = random_matrix(130, 160, 0.02f);
  const auto check = [&](const QuantTensor& q, double step) {
    const std::vector<float> got = dequantised(q);
    for (std::int64_t r = 0; r < 130; ++r) {
      for (std::int64_t c = 0; c < 160; ++c) {
        float amax = 0;
        const std::int64_t r0 = r / q.block.rows * q.block.rows,
                           c0 = c / q.block.cols * q.block.cols;
        for (std::int64_t i = r0; i < std::min<std::int64_t>(130, r0 + q.block.rows); ++i) {
          for (std::int64_t j = c0; j < std::min<std::int64_t>(160, c0 + q.block.cols); ++j) {
            amax = std::max(amax, std::fabs(w.data<const float>()[i * 160 + j]));
          }
        }
        const auto i = static_cast<std::size_t>(r * 160 + c);
        ASSERT_LE(std::fabs(got[i] - w.data<const float>()[i]), step * amax);
      }
    }
  };
  check(quantize_fp4(w), 1.0 / 3);
  check(quantize_fp8(w), 1.0 / 16);
}

// Values that the format holds come back as they were: a second pass changes nothing.
TEST(Quantize, IsIdempotent) {
  const Tensor w = random_matrix(128, 128, 1.0f);
  for (const auto quantize : {quantize_fp4, quantize_fp8}) {
    const QuantTensor once = quantize(w);
    const std::vector<float> values = dequantised(once);
    Tensor again = Tensor::empty({128, 128}, DType::f32);
    std::copy(values.begin(), values.end(), again.data<float>());
    EXPECT_EQ(dequantised(quantize(again)), values);
  }
}

TEST(Quantize, PacksTheLowerColumnInTheLowNibble) {
  Tensor w = Tensor::zeros({1, 32}, DType::f32);
  w.data<float>()[0] = 1.5f, w.data<float>()[1] = -1.0f, w.data<float>()[2] = 6.0f;
  const QuantTensor q = quantize_fp4(w);
  EXPECT_EQ(std::to_integer<int>(q.data.bytes()[0]), 0xA3);
  EXPECT_EQ(std::to_integer<int>(q.data.bytes()[1]), 0x07);
  EXPECT_EQ(q.scale.data<ue8m0>()[0].bits, 127);
}

// The loops have their own branch-free encoders; the conversions of core/dtype.h judge them.
TEST(Quantize, EncodesEveryBf16AsTheScalarConversionsDo) {
  Tensor w = Tensor::empty({128, 512}, DType::bf16);
  auto* values = w.data<bf16>();
  for (std::int64_t i = 0; i < w.numel(); ++i) {
    values[i] = {static_cast<std::uint16_t>(i)};
    if (!std::isfinite(to_float(values[i]))) values[i] = {0};
  }
  const QuantTensor fp8 = quantize_fp8(w), fp4 = quantize_fp4(w);
  for (std::int64_t r = 0; r < 128; ++r) {
    for (std::int64_t c = 0; c < 512; ++c) {
      const std::int64_t i = r * 512 + c;
      const float v = to_float(values[i]);
      const float fp8_scale = to_float(fp8.scale.data<ue8m0>()[c / 128]);
      const float fp4_scale = to_float(fp4.scale.data<ue8m0>()[i / 32]);
      ASSERT_EQ(fp8.data.data<f8_e4m3>()[i].bits, to_e4m3(v / fp8_scale).bits) << v;
      const auto packed = std::to_integer<unsigned>(fp4.data.bytes()[i / 2]);
      ASSERT_EQ((packed >> (4 * (i & 1))) & 15u, to_e2m1(v / fp4_scale)) << v;
    }
  }
}

TEST(Quantize, ZeroBlocksStayZero) {
  const Tensor w = Tensor::zeros({4, 64}, DType::f32);
  for (const float v : dequantised(quantize_fp4(w))) EXPECT_EQ(v, 0.0f);
  for (const float v : dequantised(quantize_fp8(w))) EXPECT_EQ(v, 0.0f);
}

TEST(Quantize, RefusesWhatItCannotHold) {
  Tensor w = Tensor::zeros({2, 64}, DType::f32);
  w.data<float>()[70] = NAN;
  for (const auto quantize : {quantize_fp4, quantize_fp8}) {
    try {
      (void)quantize(w);
      FAIL() << "NaN was quantised";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("row 1 column 6"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_THROW((void)quantize_fp4(Tensor::zeros({2, 40}, DType::f32)), Error);
}

std::vector<float> rows_of(const Tensor& w) {
  return {w.data<const float>(), w.data<const float>() + w.numel()};
}

// What the rule of training.md §3.3 says, tile by tile, in plain words.
struct ExpectedScales {
  std::vector<int> exponents;
  std::int64_t n_lifted = 0;
};
ExpectedScales expected_scales(const Tensor& w) {
  const std::int64_t rows = w.dim(0), tiles = w.dim(1) / 32;
  const auto amax = [&](std::int64_t r, std::int64_t t) {
    float largest = 0;
    for (std::int64_t i = 0; i < 32; ++i) {
      largest = std::max(largest, std::fabs(w.data<const float>()[r * w.dim(1) + t * 32 + i]));
    }
    return largest;
  };
  const auto own = [&](float largest) {
    return static_cast<int>(std::ceil(std::log2(static_cast<double>(largest) / 6)));
  };
  ExpectedScales expected;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t t = 0; t < tiles; ++t) {
      int largest = -1000;
      const std::int64_t r0 = r / 128 * 128, t0 = t / 4 * 4;
      for (std::int64_t i = r0; i < std::min(rows, r0 + 128); ++i) {
        for (std::int64_t j = t0; j < std::min(tiles, t0 + 4); ++j) {
          if (amax(i, j) > 0) largest = std::max(largest, own(amax(i, j)));
        }
      }
      if (amax(r, t) == 0) {
        expected.exponents.push_back(largest == -1000 ? -127 : largest);
        continue;
      }
      const int exponent = std::max(own(amax(r, t)), largest - 11);
      expected.n_lifted += exponent > own(amax(r, t)) ? 1 : 0;
      expected.exponents.push_back(exponent);
    }
  }
  return expected;
}

void expect_exact_in_fp8(const Tensor& w, const Fp4InFp8& fp4) {
  const ExpectedScales expected = expected_scales(w);
  EXPECT_EQ(fp4.n_lifted, expected.n_lifted);
  for (std::size_t i = 0; i < expected.exponents.size(); ++i) {
    ASSERT_EQ(fp4.weight.scale.data<const ue8m0>()[i].bits - 127, expected.exponents[i]) << i;
  }
  const std::vector<float> values = dequantised(fp4.weight);
  EXPECT_EQ(dequantised(fp8_from_fp4(fp4.weight)), values);
  // Every value is the nearest that its tile's scale has: half a step of 2 in the largest binade.
  for (std::int64_t i = 0; i < w.numel(); ++i) {
    const float scale = to_float(fp4.weight.scale.data<const ue8m0>()[i / 32]);
    ASSERT_LE(std::fabs(values[static_cast<std::size_t>(i)] - w.data<const float>()[i]), scale);
  }
}

TEST(Fp4InFp8, IsPlainFp4WhereTheWeightsAreOfOneSize) {
  const Tensor w = random_matrix(130, 160, 0.02f);  // ragged: two blocks each way
  const Fp4InFp8 fp4 = quantize_fp4_in_fp8(w);
  EXPECT_EQ(fp4.n_lifted, 0);
  EXPECT_EQ(dequantised(fp4.weight), dequantised(quantize_fp4(w)));
  expect_exact_in_fp8(w, fp4);
}

TEST(Fp4InFp8, IsExactForWideRangesAndZeroTiles) {
  Tensor w = random_matrix(200, 256, 1.0f);
  Rng rng(5);
  std::int64_t n_zero = 0;
  for (std::int64_t tile = 0; tile < w.numel() / 32; ++tile) {
    const auto kind = rng.next_below(4);
    n_zero += kind == 0 ? 1 : 0;
    const float factor = kind == 0 ? 0.0f : std::ldexp(1.0f, -static_cast<int>(rng.next_below(30)));
    for (std::int64_t i = 0; i < 32; ++i) w.data<float>()[tile * 32 + i] *= factor;
  }
  ASSERT_GT(n_zero, 300);
  const Fp4InFp8 fp4 = quantize_fp4_in_fp8(w);
  EXPECT_GT(fp4.n_lifted, 300);
  expect_exact_in_fp8(w, fp4);
  // Without the rule it is not exact, which fp8_from_fp4 notices.
  EXPECT_THROW((void)fp8_from_fp4(quantize_fp4(w)), Error);
}

TEST(Fp4InFp8, IsExactAtTheEndsOfFloat) {
  for (const float size : {1e-38f, 1e-30f, 1e30f, 3e38f}) {
    Tensor w = random_matrix(32, 64, 0.2f);
    for (std::int64_t i = 0; i < w.numel(); ++i) w.data<float>()[i] *= size;
    const Fp4InFp8 fp4 = quantize_fp4_in_fp8(w);
    EXPECT_EQ(dequantised(fp8_from_fp4(fp4.weight)), dequantised(fp4.weight)) << size;
  }
  const Fp4InFp8 zero = quantize_fp4_in_fp8(Tensor::zeros({130, 64}, DType::f32));
  EXPECT_EQ(zero.n_lifted, 0);
  for (const float v : dequantised(fp8_from_fp4(zero.weight))) EXPECT_EQ(v, 0.0f);
}

// Scales 2^11 apart are as they were, 2^12 apart are lifted by one: a value of 3 sixths of the
// smaller tile, 1.5 steps, then lies between two values and goes to the even one.
TEST(Fp4InFp8, LiftsFromTwelveOn) {
  Tensor w = Tensor::zeros({1, 64}, DType::f32);
  auto* x = w.data<float>();
  x[0] = 6.0f;
  x[32] = std::ldexp(6.0f, -11), x[33] = std::ldexp(0.5f, -11);
  EXPECT_EQ(quantize_fp4_in_fp8(w).n_lifted, 0);
  EXPECT_EQ(dequantised(quantize_fp4_in_fp8(w).weight), rows_of(w));
  x[32] = std::ldexp(6.0f, -12), x[33] = std::ldexp(0.5f, -12), x[34] = std::ldexp(1.5f, -12);
  const Fp4InFp8 lifted = quantize_fp4_in_fp8(w);
  EXPECT_EQ(lifted.n_lifted, 1);
  const std::vector<float> values = dequantised(lifted.weight);
  EXPECT_EQ(values[32], x[32]);
  EXPECT_EQ(values[33], 0.0f);                   // 0.25 steps: the tie goes to 0
  EXPECT_EQ(values[34], std::ldexp(1.0f, -11));  // 0.75 steps: the tie goes to 1
}

// E4M3 with its subnormals holds scales 2^14 apart; beyond, a value is lost and it says which.
TEST(Fp4InFp8, ExpandsUpToFourteen) {
  for (const int span : {11, 14, 15}) {
    QuantTensor w{Tensor::zeros({1, 64}, DType::f4_e2m1), Tensor::zeros({1, 2}, DType::ue8m0),
                  kFp4Block};
    w.scale.data<ue8m0>()[0].bits = 127;
    w.scale.data<ue8m0>()[1].bits = static_cast<std::uint8_t>(127 - span);
    w.data.bytes()[0] = std::byte{0xF7};   // 6 and -6
    w.data.bytes()[16] = std::byte{0x31};  // 0.5 and 1.5 of the small tile
    if (span < 15) {
      EXPECT_EQ(dequantised(fp8_from_fp4(w)), dequantised(w)) << span;
      continue;
    }
    try {
      (void)fp8_from_fp4(w);
      FAIL() << "2^15 apart";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("row 0 tile 1 has scale 2^-15, its block 2^0"),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(Fp4InFp8, TakesBf16AndRefusesNaN) {
  Tensor w = random_matrix(130, 64, 0.02f);
  w.data<float>()[64] *= 1e-6f;  // alone in no tile: nothing to lift
  Tensor narrow = Tensor::empty({130, 64}, DType::bf16);
  for (std::int64_t i = 0; i < w.numel(); ++i) {
    narrow.data<bf16>()[i] = to_bf16(w.data<const float>()[i]);
    w.data<float>()[i] = to_float(narrow.data<const bf16>()[i]);
  }
  EXPECT_EQ(dequantised(quantize_fp4_in_fp8(narrow).weight),
            dequantised(quantize_fp4_in_fp8(w).weight));
  w.data<float>()[70] = NAN;
  EXPECT_THROW((void)quantize_fp4_in_fp8(w), Error);
}

}  // namespace
}  // namespace hadal
