#include "cuda/support.h"
#include "kernels/linear.h"

namespace hadal::test {
namespace {

class CudaLinearBackward : public CudaTest {
 protected:
  struct Case {
    std::int64_t n_tokens, rows, cols, n_groups = 1;
  };
  struct Gradients {
    Tensor dx, dweight;
  };

  // On the CPU and the GPU, with a dweight that is not zero before.
  void expect_same(const Case& c, DType activation, DType format, ActivationQuant quant,
                   double rel) {
    const std::string what = std::string(to_string(activation)) + " x " + to_string(format) + ", " +
                             std::to_string(c.n_tokens) + " x " + std::to_string(c.rows) + " x " +
                             std::to_string(c.cols) + " in " + std::to_string(c.n_groups);
    const Tensor x = random({c.n_tokens, c.n_groups * c.cols}, activation);
    const Tensor dy = random({c.n_tokens, c.rows}, DType::f32, 1e-3f);
    const QuantTensor w = random_weight(c.rows, c.cols, format);
    const Tensor before = random({c.rows, c.cols}, DType::f32, 1e-3f);
    const Tensor dx = Tensor::empty(x.shape(), DType::f32), dw = copy_of(before);
    run_cpu(kLinearBackward, activation,
            {.dx = dx,
             .dweight = dw,
             .dy = dy,
             .x = x,
             .weight = &w,
             .n_groups = c.n_groups,
             .activation_quant = quant});
    const Tensor dx_gpu = device_empty(x.shape(), DType::f32), dw_gpu = to_device(before);
    const Tensor dy_gpu = to_device(dy), x_gpu = to_device(x);
    const QuantTensor w_gpu = to_device(w);
    run_gpu(kLinearBackward, activation,
            {.dx = dx_gpu,
             .dweight = dw_gpu,
             .dy = dy_gpu,
             .x = x_gpu,
             .weight = &w_gpu,
             .n_groups = c.n_groups,
             .activation_quant = quant});
    expect_close(to_host(dx_gpu), dx, rel, 1e-9, "dx of " + what);
    expect_close(to_host(dw_gpu), dw, rel, 1e-9, "dweight of " + what);
  }
};

// Sums of a few thousand products in another order: some 1e-7 times their square root.
constexpr double kF32 = 5e-6;
// dy is rounded to bf16, 2^-9 at most and 1.1e-3 in the root of the mean square; the weights and
// inputs are bf16 values already.
constexpr double kBf16 = 3e-3;

TEST_F(CudaLinearBackward, F32IsTheCpusUpToTheOrderOfSums) {
  for (const Case& c : {Case{1, 1, 1},
                        {1, 8, 16},
                        {7, 13, 29},
                        {65, 129, 64},
                        {1000, 96, 257},
                        {129, 64, 40, 4},
                        {300, 12, 7, 3}}) {
    expect_same(c, DType::f32, DType::f32, ActivationQuant::none, kF32);
  }
  expect_same({33, 256, 384}, DType::f32, DType::f8_e4m3, ActivationQuant::none, kF32);
  expect_same({33, 64, 96}, DType::f32, DType::f4_e2m1, ActivationQuant::none, kF32);
}

TEST_F(CudaLinearBackward, Bf16RoundsOnlyTheGradientItGets) {
  for (const Case& c : {Case{1, 8, 8},
                        {7, 16, 24},
                        {65, 136, 64},
                        {1000, 96, 256},
                        {2049, 512, 512},
                        {129, 64, 40, 4},
                        {1024, 512, 256, 4}}) {
    expect_same(c, DType::bf16, DType::bf16, ActivationQuant::none, kBf16);
  }
}

// Rows that tensor cores cannot take, and f32 weights of bf16 activations, stay in f32.
TEST_F(CudaLinearBackward, OddShapesAndF32WeightsOfBf16Activations) {
  expect_same({77, 13, 64}, DType::bf16, DType::bf16, ActivationQuant::none, kF32);
  expect_same({77, 64, 29}, DType::bf16, DType::bf16, ActivationQuant::none, kF32);
  expect_same({77, 12, 64, 3}, DType::bf16, DType::bf16, ActivationQuant::none, kF32);
  expect_same({77, 32, 64}, DType::bf16, DType::f32, ActivationQuant::none, kF32);
}

// The forward multiplied E4M3 values; bf16 holds them exactly.
TEST_F(CudaLinearBackward, InputsRoundedToFp8) {
  for (const DType format : {DType::f8_e4m3, DType::f4_e2m1}) {
    for (const Case& c : {Case{1, 128, 128}, {65, 256, 384}, {200, 128, 160}}) {
      expect_same(c, DType::bf16, format, ActivationQuant::fp8_block128, kBf16);
    }
  }
}

TEST_F(CudaLinearBackward, WhatIsNotWantedIsNotTouchedAndNothingIsNothing) {
  const QuantTensor w = to_device(random_weight(16, 24, DType::bf16));
  const Tensor x = to_device(random({5, 24}, DType::bf16)),
               dy = to_device(random({5, 16}, DType::f32));
  const Tensor dx = device_empty({5, 24}, DType::f32);
  run_gpu(kLinearBackward, DType::bf16, {.dx = dx, .dweight = {}, .dy = dy, .x = x, .weight = &w});
  EXPECT_TRUE(std::isfinite(value_at(to_host(dx), 119)));
  const Tensor before = random({16, 24}, DType::f32), dw = to_device(before);
  run_gpu(kLinearBackward, DType::bf16,
          {.dx = {}, .dweight = dw, .dy = dy.slice(0, 0), .x = x.slice(0, 0), .weight = &w});
  expect_same_bytes(to_host(dw), before, "dweight of no tokens");
}

TEST_F(CudaLinearBackward, RepeatsToTheBit) {
  const QuantTensor w = to_device(random_weight(512, 256, DType::bf16));
  const Tensor x = to_device(random({4097, 256}, DType::bf16));
  const Tensor dy = to_device(random({4097, 512}, DType::f32));
  Tensor first_dx, first_dw;
  for (int i = 0; i < 3; ++i) {
    const Tensor dx = device_empty({4097, 256}, DType::f32);
    const Tensor dw = to_device(Tensor::zeros({512, 256}, DType::f32));
    run_gpu(kLinearBackward, DType::bf16,
            {.dx = dx, .dweight = dw, .dy = dy, .x = x, .weight = &w});
    if (i == 0) {
      first_dx = to_host(dx), first_dw = to_host(dw);
      continue;
    }
    expect_same_bytes(to_host(dx), first_dx, "dx");
    expect_same_bytes(to_host(dw), first_dw, "dweight");
  }
}

}  // namespace
}  // namespace hadal::test
