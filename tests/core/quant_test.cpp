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

}  // namespace
}  // namespace hadal
