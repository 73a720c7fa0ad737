#include "kernels/linear.h"

#include <fmt/format.h>

#include "cuda/support.h"

namespace hadal::test {
namespace {

struct LinearCase {
  std::int64_t n_tokens, rows, cols, n_groups = 1;
};

class CudaLinear : public CudaTest {
 protected:
  static ActivationQuant quant_of(DType x, DType format) {
    const bool quantised = format == DType::f8_e4m3 || format == DType::f4_e2m1;
    return x == DType::bf16 && quantised ? ActivationQuant::fp8_block128 : ActivationQuant::none;
  }
  static std::string name_of(const LinearCase& c, DType x, DType y, DType format,
                             ActivationQuant quant) {
    return fmt::format("y {} [{}, {}] = x {} * {} [{}, {}], {} groups{}", to_string(y), c.n_tokens,
                       c.rows, to_string(x), to_string(format), c.rows, c.cols, c.n_groups,
                       quant == ActivationQuant::none ? "" : ", x rounded to FP8");
  }

  Tensor on_gpu(const Tensor& x, const QuantTensor& w, DType y_dtype, std::int64_t n_groups,
                ActivationQuant quant) {
    const Tensor y = device_empty({x.dim(0), w.rows()}, y_dtype);
    const Tensor dx = to_device(x);
    run_gpu(kLinear, x.dtype(),
            {.y = y, .x = dx, .weight = &w, .n_groups = n_groups, .activation_quant = quant});
    return to_host(y);
  }
  Tensor on_cpu(const Tensor& x, const QuantTensor& w, DType y_dtype, std::int64_t n_groups,
                ActivationQuant quant) {
    Tensor y = Tensor::empty({x.dim(0), w.rows()}, y_dtype);
    run_cpu(kLinear, x.dtype(),
            {.y = y, .x = x, .weight = &w, .n_groups = n_groups, .activation_quant = quant});
    return y;
  }

  void compare(const LinearCase& c, DType x_dtype, DType y_dtype, DType format,
               ActivationQuant quant) {
    const std::string what = name_of(c, x_dtype, y_dtype, format, quant);
    const Tensor x = random({c.n_tokens, c.n_groups * c.cols}, x_dtype);
    const QuantTensor w = random_weight(c.rows, c.cols, format), dw = to_device(w);
    const Tensor want = on_cpu(x, w, y_dtype, c.n_groups, quant);
    const Tensor got = on_gpu(x, dw, y_dtype, c.n_groups, quant);
    expect_close(got, want, tolerance(y_dtype, format, quant), 1e-6, what);
  }

  // Products are exact or rounded once in f32, sums are f32 in another order; tensor cores cut off
  // what is below 2^-24 or so of the largest term, of FP8 by FP8 below 2^-14: of a block of 128
  // that is 2e-4 of the sum of magnitudes at worst (mma_bits_test), which is seven times a random
  // sum. One rounding to bf16 may then fall the other way by 2^-8: for few elements, and after FP8
  // for one in ten.
  static double tolerance(DType y, DType format, ActivationQuant quant) {
    const bool fp8 = quant == ActivationQuant::fp8_block128 &&
                     (format == DType::f8_e4m3 || format == DType::f4_e2m1);
    return fp8 ? (y == DType::f32 ? 1e-3 : 3e-3) : (y == DType::f32 ? 5e-6 : 1e-3);
  }
};

const LinearCase kCases[] = {
    {0, 64, 128},                        // nobody
    {1, 1, 128},     {1, 16, 32},        // less than one tile of anything
    {1, 128, 4096},  {2, 512, 1024},     // a decode step
    {5, 130, 160},   {8, 127, 256},      // ragged rows, a part of a block of columns
    {9, 96, 384},    {16, 48, 2048},     //
    {17, 33, 128},   {33, 257, 416},     // past a tile of tokens
    {64, 128, 512},  {65, 384, 640},     // the two kernels
    {128, 128, 128}, {129, 129, 1152},   //
    {300, 200, 96},  {7, 64, 8192},      //
    {700, 530, 640}, {90, 1000, 2048},   // many tiles of tokens, or of rows
    {4, 64, 128, 2}, {70, 192, 256, 3},  // groups
    {3, 48, 96, 4},                      // groups, and their columns are no whole block
};

TEST_F(CudaLinear, AgreesWithTheCpuInEveryFormat) {
  for (const LinearCase& c : kCases) {
    for (const DType format : {DType::bf16, DType::f8_e4m3, DType::f4_e2m1, DType::f32}) {
      compare(c, DType::bf16, DType::bf16, format, quant_of(DType::bf16, format));
      compare(c, DType::bf16, DType::f32, format, quant_of(DType::bf16, format));
      compare(c, DType::f32, DType::f32, format, ActivationQuant::none);
    }
  }
}

TEST_F(CudaLinear, TakesInputsUnroundedForFp8Weights) {
  for (const LinearCase& c : {LinearCase{3, 64, 256}, LinearCase{70, 160, 512, 4}}) {
    compare(c, DType::bf16, DType::f32, DType::f8_e4m3, ActivationQuant::none);
    compare(c, DType::f32, DType::f32, DType::f8_e4m3, ActivationQuant::fp8_block128);
  }
}

// Columns that fill no 16 bytes: rows begin anywhere.
TEST_F(CudaLinear, TakesRowsThatAreNotAligned) {
  for (const std::int64_t n_tokens : {1, 20, 100}) {
    for (const std::int64_t cols : {1, 37, 129, 250}) {
      compare({n_tokens, 50, cols}, DType::bf16, DType::f32, DType::bf16, ActivationQuant::none);
      compare({n_tokens, 50, cols}, DType::bf16, DType::f32, DType::f8_e4m3,
              ActivationQuant::fp8_block128);
      compare({n_tokens, 50, cols}, DType::f32, DType::f32, DType::f32, ActivationQuant::none);
      compare({n_tokens, 50, cols, 2}, DType::bf16, DType::f32, DType::bf16, ActivationQuant::none);
    }
  }
}

TEST_F(CudaLinear, TakesF32ScalesOfFp8Blocks) {
  QuantTensor w = random_weight(300, 512, DType::f8_e4m3);
  const Tensor scale = random(w.scale.shape(), DType::f32);
  w.scale = scale;
  const QuantTensor dw = to_device(w);
  for (const std::int64_t n_tokens : {1, 40, 130}) {
    const Tensor x = random({n_tokens, 512}, DType::bf16);
    const Tensor want = on_cpu(x, w, DType::f32, 1, ActivationQuant::fp8_block128);
    expect_close(on_gpu(x, dw, DType::f32, 1, ActivationQuant::fp8_block128), want,
                 tolerance(DType::f32, DType::f8_e4m3, ActivationQuant::fp8_block128), 1e-6,
                 fmt::format("f32 scales, {} tokens", n_tokens));
  }
}

// Small integers: every sum is exact in f32, so both sides agree to the bit whatever the order, and
// the first element that differs tells which row, token or column went astray.
TEST_F(CudaLinear, IsExactOnSmallIntegers) {
  for (const DType format : {DType::bf16, DType::f8_e4m3, DType::f4_e2m1, DType::f32}) {
    for (const LinearCase& c : {LinearCase{1, 32, 128}, LinearCase{13, 144, 512},
                                LinearCase{40, 144, 512}, LinearCase{200, 272, 512}}) {
      Tensor weight = Tensor::empty({c.rows, c.cols}, DType::f32);
      const Tensor steps = random_ids({c.rows, c.cols}, 9);
      // -2 .. 2 in halves, and a 6 in every group of 32 so that its FP4 scale is 1.
      for (std::int64_t i = 0; i < weight.numel(); ++i) {
        weight.data<float>()[i] =
            i % 32 == 7 ? 6.0f : 0.5f * static_cast<float>(steps.data<std::int32_t>()[i] - 4);
      }
      QuantTensor w{weight, {}, {}};
      if (format == DType::f8_e4m3) w = quantize_fp8(weight);
      if (format == DType::f4_e2m1) w = quantize_fp4(weight);
      if (format == DType::bf16) {
        w.data = Tensor::empty(weight.shape(), DType::bf16);
        for (std::int64_t i = 0; i < weight.numel(); ++i) {
          set(w.data, i, weight.data<float>()[i]);
        }
      }
      Tensor x = Tensor::empty({c.n_tokens, c.cols}, DType::bf16);
      const Tensor values = random_ids({c.n_tokens, c.cols}, 15);
      for (std::int64_t i = 0; i < x.numel(); ++i) {
        set(x, i, static_cast<float>(values.data<std::int32_t>()[i] - 7));
      }
      const ActivationQuant quant = quant_of(DType::bf16, format);
      const Tensor want = on_cpu(x, w, DType::f32, 1, quant);
      expect_same_bytes(on_gpu(x, to_device(w), DType::f32, 1, quant), want,
                        name_of(c, DType::bf16, DType::f32, format, quant));
    }
  }
}

// Scales far apart, and at the ends of what a scale can be while bf16 holds the values. Where the
// terms of a sum differ so much, what is cut off is three times as large.
TEST_F(CudaLinear, TakesFp4ScalesOfEverySize) {
  QuantTensor w = random_weight(64, 1024, DType::f4_e2m1);
  for (std::int64_t i = 0; i < w.scale.numel(); ++i) {
    w.scale.data<ue8m0>()[i].bits = static_cast<std::uint8_t>(97 + i * 7 % 60);
  }
  const QuantTensor dw = to_device(w);
  for (const std::int64_t n_tokens : {1, 33, 70}) {
    const Tensor x = random({n_tokens, 1024}, DType::bf16);
    const Tensor want = on_cpu(x, w, DType::f32, 1, ActivationQuant::fp8_block128);
    expect_close(on_gpu(x, dw, DType::f32, 1, ActivationQuant::fp8_block128), want, 3e-3, 0,
                 fmt::format("FP4 scales far apart, {} tokens", n_tokens));
  }
}

// A row has the same bits alone, in any batch, and in any piece of it.
TEST_F(CudaLinear, DoesNotDependOnTheBatch) {
  constexpr std::int64_t kTokens = 1000;
  for (const DType format : {DType::bf16, DType::f8_e4m3, DType::f4_e2m1, DType::f32}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const std::int64_t cols = 1184;  // not a whole number of blocks
      const QuantTensor w = to_device(random_weight(200, cols, format));
      const Tensor x = random({kTokens, cols}, dtype);
      const ActivationQuant quant = quant_of(dtype, format);
      const Tensor whole = on_gpu(x, w, DType::f32, 1, quant);
      for (const std::int64_t n : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 500}) {
        for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{371}, kTokens - n}) {
          expect_same_bytes(
              on_gpu(x.slice(begin, begin + n), w, DType::f32, 1, quant),
              whole.slice(begin, begin + n),
              fmt::format("{} weights, {} x, tokens {} to {} of {}", to_string(format),
                          to_string(dtype), begin, begin + n, kTokens));
        }
      }
    }
  }
}

// The kernels for many tokens, several tiles of them for every multiprocessor, against those for
// few; and a part of it against the CPU.
TEST_F(CudaLinear, ManyTokensHaveTheBitsOfFew) {
  constexpr std::int64_t kTokens = 8192;
  struct Case {
    DType format;
    ActivationQuant quant;
    std::int64_t rows, cols, n_groups;
  };
  for (const Case& c : {
           Case{DType::f8_e4m3, ActivationQuant::fp8_block128, 640, 1024, 1},
           Case{DType::f8_e4m3, ActivationQuant::fp8_block128, 384, 512, 2},
           Case{DType::f4_e2m1, ActivationQuant::fp8_block128, 520, 544, 1},
           Case{DType::f8_e4m3, ActivationQuant::none, 512, 512, 4},
           Case{DType::bf16, ActivationQuant::none, 328, 1024, 1},
           Case{DType::bf16, ActivationQuant::none, 288, 192, 3},
       }) {
    const QuantTensor w = random_weight(c.rows, c.cols, c.format), dw = to_device(w);
    const Tensor x = random({kTokens, c.n_groups * c.cols}, DType::bf16);
    for (const DType y : {DType::bf16, DType::f32}) {
      const std::string what =
          name_of({kTokens, c.rows, c.cols, c.n_groups}, DType::bf16, y, c.format, c.quant);
      const Tensor whole = on_gpu(x, dw, y, c.n_groups, c.quant);
      for (const std::int64_t n : {1, 8, 16, 64, 65, 97, 1000, 4096}) {
        for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{3333}, kTokens - n}) {
          expect_same_bytes(on_gpu(x.slice(begin, begin + n), dw, y, c.n_groups, c.quant),
                            whole.slice(begin, begin + n),
                            fmt::format("{}: {} from {} on", what, n, begin));
        }
      }
      const Tensor part = x.slice(kTokens - 200, kTokens);
      expect_close(whole.slice(kTokens - 200, kTokens), on_cpu(part, w, y, c.n_groups, c.quant),
                   tolerance(y, c.format, c.quant), 1e-6, what);
    }
  }
}

TEST_F(CudaLinear, RefusesWhatItHasNoCodeFor) {
  QuantTensor w = to_device(random_weight(64, 128, DType::f8_e4m3));
  w.block = {1, 32};
  const Tensor x = to_device(random({1, 128}, DType::bf16)), y = device_empty({1, 64}, DType::f32);
  EXPECT_THROW(run_gpu(kLinear, DType::bf16, {.y = y, .x = x, .weight = &w}), Error);
  const QuantTensor plain = to_device(random_weight(64, 256, DType::bf16));
  EXPECT_THROW(run_gpu(kLinear, DType::bf16, {.y = y, .x = x, .weight = &plain}), Error);
}

}  // namespace
}  // namespace hadal::test
