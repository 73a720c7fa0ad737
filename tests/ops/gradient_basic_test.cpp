// Norms, rotations, linears, embedding, streams and the loss: backward against differences in f64.
#include <gtest/gtest.h>

#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::expect_gradients;
using test::random_f32;
using test::TestContext;
using test::Values;
using test::ValuesList;

Values norm_rows(const Values& x, const Values& weight, double eps) {
  const std::size_t n = weight.size();
  Values y(x.size());
  for (std::size_t r = 0; r < x.size(); r += n) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += x[r + i] * x[r + i];
    const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + eps);
    for (std::size_t i = 0; i < n; ++i) y[r + i] = weight[i] * x[r + i] * scale;
  }
  return y;
}

TEST(GradientTest, RmsNorm) {
  for (const std::int64_t rows : {1, 7, 130}) {
    const std::int64_t n = rows == 130 ? 5 : 33;
    expect_gradients(
        {random_f32({rows, n}, 1), random_f32({n}, 2)},
        [](ExecContext& ctx, const TensorList& in) -> TensorList {
          return {ops::rms_norm(ctx, in[0], in[1], 1e-3f)};
        },
        [](const ValuesList& in) -> ValuesList { return {norm_rows(in[0], in[1], 1e-3f)}; });
  }
}

TEST(GradientTest, HeadNorm) {
  expect_gradients(
      {random_f32({3, 4, 17}, 1)},
      [](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::head_norm(ctx, in[0], 1e-3f)};
      },
      [](const ValuesList& in) -> ValuesList {
        return {norm_rows(in[0], Values(17, 1.0), 1e-3f)};
      });
}

TEST(GradientTest, RopeBothWays) {
  TestContext tc(Numerics::fp32);
  const auto frequencies = ops::rope_frequencies({.rope_dim = 6, .theta = 100});
  const std::vector<std::int64_t> positions{0, 5, 1000};
  const Tensor table = ops::rope_table(tc.ctx, frequencies, positions);
  for (const RopeDirection direction : {RopeDirection::forward, RopeDirection::inverse}) {
    const double sign = direction == RopeDirection::forward ? 1 : -1;
    expect_gradients(
        {random_f32({3, 2, 10}, 1)},
        [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          return {ops::rope(ctx, in[0], table, direction)};
        },
        [&](const ValuesList& in) -> ValuesList {
          Values y = in[0];
          for (std::size_t t = 0; t < 3; ++t) {
            for (std::size_t h = 0; h < 2; ++h) {
              for (std::size_t i = 0; i < 3; ++i) {
                const double c = table.data<float>()[(t * 3 + i) * 2];
                const double s = sign * table.data<float>()[(t * 3 + i) * 2 + 1];
                double* pair = y.data() + (t * 2 + h) * 10 + 4 + 2 * i;
                const double a = pair[0], b = pair[1];
                pair[0] = a * c - b * s, pair[1] = a * s + b * c;
              }
            }
          }
          return {y};
        });
  }
}

// y = x W^T, block-diagonal in groups.
Values multiply(const Values& x, const Values& w, std::size_t rows, std::size_t cols,
                std::size_t groups) {
  const std::size_t n_tokens = x.size() / (groups * cols);
  Values y(n_tokens * rows);
  for (std::size_t t = 0; t < n_tokens; ++t) {
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t g = r / (rows / groups);
      for (std::size_t c = 0; c < cols; ++c) {
        y[t * rows + r] += x[(t * groups + g) * cols + c] * w[r * cols + c];
      }
    }
  }
  return y;
}

TEST(GradientTest, LinearAndGroupedLinear) {
  for (const std::int64_t groups : {1, 3}) {
    expect_gradients(
        {random_f32({5, groups * 7}, 1), random_f32({6, 7}, 2)},
        [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          const QuantTensor w{in[1], {}, {}};
          if (groups == 1) return {ops::linear(ctx, in[0], w), ops::linear_f32(ctx, in[0], w)};
          return {ops::grouped_linear(ctx, in[0], w, groups)};
        },
        [&](const ValuesList& in) -> ValuesList {
          const Values y = multiply(in[0], in[1], 6, 7, static_cast<std::size_t>(groups));
          if (groups == 1) return {y, y};
          return {y};
        });
  }
}

// Straight through: the gradient is that of the values that were multiplied.
TEST(GradientTest, QuantisedLinearUsesTheRoundedValues) {
  const Tensor master = random_f32({64, 128}, 2, 0.1f);
  for (const bool fp4 : {false, true}) {
    QuantTensor w = fp4 ? quantize_fp4(master) : quantize_fp8(master);
    TestContext tc(Numerics::official);
    Tape tape(tc.allocator, 2);
    TensorList gradients;
    // The gradient belongs to the master, whatever form it is multiplied in.
    const TensorList in = test::as_parameters(
        tape, {test::to_dtype(random_f32({9, 128}, 1), DType::bf16), w.data}, gradients);
    w.data = in[1];
    tc.ctx.set_tape(&tape);
    const Tensor y = ops::linear(tc.ctx, in[0], w);
    const Tensor dy = random_f32(y.shape(), 3);
    test::add_probe(tape, y, dy);
    tape.backward(tc.ctx);

    std::vector<float> values(64 * 128);
    dequantize_rows(w, 0, 64, values.data());
    Values dx(9 * 128), dw(64 * 128);
    for (std::size_t t = 0; t < 9; ++t) {
      float amax = 0;
      const auto* x = in[0].data<bf16>() + t * 128;
      for (int c = 0; c < 128; ++c) amax = std::max(amax, std::abs(to_float(x[c])));
      const int e = e4m3_scale_exponent(amax);
      for (std::size_t r = 0; r < 64; ++r) {
        const double g = dy.data<float>()[t * 64 + r];
        for (std::size_t c = 0; c < 128; ++c) {
          const float rounded = std::ldexp(to_float(to_e4m3(std::ldexp(to_float(x[c]), -e))), e);
          dx[t * 128 + c] += g * values[r * 128 + c];
          dw[r * 128 + c] += g * rounded;
        }
      }
    }
    EXPECT_LT(test::relative_l2(gradients[0], dx), 1e-6);
    EXPECT_LT(test::relative_l2(gradients[1], dw), 1e-6);
  }
}

TEST(GradientTest, EmbeddingAddsRepeatedTokens) {
  Tensor ids = Tensor::empty({5}, DType::i32);
  const std::int32_t list[] = {3, 0, 3, 3, 1};
  std::copy_n(list, 5, ids.data<std::int32_t>());
  expect_gradients(
      {random_f32({4, 9}, 1)},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::embed(ctx, ids, in[0], 2)};
      },
      [&](const ValuesList& in) -> ValuesList {
        Values y;
        for (const std::int32_t id : list) {
          for (int j = 0; j < 2; ++j) {
            for (int i = 0; i < 9; ++i) y.push_back(in[0][static_cast<std::size_t>(id * 9 + i)]);
          }
        }
        return {y};
      });
}

TEST(GradientTest, StreamsAndScale) {
  expect_gradients(
      {random_f32({3, 4, 5}, 1), random_f32({3, 5}, 2)},
      [](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::add_to_streams(ctx, in[0], ops::scale(ctx, in[1], 0.25f))};
      },
      [](const ValuesList& in) -> ValuesList {
        Values y = in[0];
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += 0.25 * in[1][i / 20 * 5 + i % 5];
        return {y};
      });
}

// The loss and both gradients, with rows that have no target, over more rows than one chunk.
TEST(GradientTest, CrossEntropy) {
  const std::int64_t n = 37, hidden = 6, vocab = 11;
  Tensor targets = Tensor::empty({n}, DType::i32);
  for (std::int64_t t = 0; t < n; ++t) {
    targets.data<std::int32_t>()[t] = t % 5 == 0 ? -1 : static_cast<std::int32_t>(t * 7 % vocab);
  }
  const Tensor x = random_f32({n, hidden}, 1), head = random_f32({vocab, hidden}, 2);
  const float scale = 0.125f;
  const auto reference = [&](const ValuesList& in) -> double {
    const Values z = multiply(in[0], in[1], static_cast<std::size_t>(vocab),
                              static_cast<std::size_t>(hidden), 1);
    double sum = 0;
    for (std::int64_t t = 0; t < n; ++t) {
      const std::int32_t target = targets.data<std::int32_t>()[t];
      if (target < 0) continue;
      double total = 0;
      for (std::int64_t v = 0; v < vocab; ++v) {
        total += std::exp(z[static_cast<std::size_t>(t * vocab + v)]);
      }
      sum += std::log(total) - z[static_cast<std::size_t>(t * vocab + target)];
    }
    return sum;
  };
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 2);
  TensorList gradients;
  const TensorList in = test::as_parameters(tape, {x, head}, gradients);
  tc.ctx.set_tape(&tape);
  const Tensor loss = ops::cross_entropy(tc.ctx, in[0], {in[1], {}, {}}, targets, scale);
  tape.backward(tc.ctx);
  double sum = 0;
  for (std::int64_t t = 0; t < n; ++t) sum += loss.data<float>()[t];
  const ValuesList at{test::values_of(x), test::values_of(head)};
  EXPECT_NEAR(sum, reference(at), 1e-4);

  const ValuesList wanted = test::central_differences(at, [&](const ValuesList& v) -> ValuesList {
    // One output, so that the probe is one factor; undone below.
    return {{reference(v)}};
  });
  const double probe = random_f32({1}, 1000).data<float>()[0];
  for (std::size_t i = 0; i < 2; ++i) {
    Values scaled = wanted[i];
    for (double& v : scaled) v *= scale / probe;
    EXPECT_LT(test::relative_l2(gradients[i], scaled), 2e-5) << i;
  }
}

TEST(GradientTest, CrossEntropyRefusesATargetOutsideTheVocabulary) {
  TestContext tc(Numerics::fp32);
  Tensor targets = Tensor::zeros({2}, DType::i32);
  targets.data<std::int32_t>()[1] = 11;
  EXPECT_THROW(static_cast<void>(ops::cross_entropy(tc.ctx, random_f32({2, 4}, 1),
                                                    {random_f32({11, 4}, 2), {}, {}}, targets, 1)),
               Error);
}

}  // namespace
}  // namespace hadal
