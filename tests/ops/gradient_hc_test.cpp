// Hyper-connections backwards against differences in f64.
#include <gtest/gtest.h>

#include "ops/hyper_connection.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::expect_gradients;
using test::random_f32;
using test::same_bits;
using test::TestContext;
using test::Values;
using test::ValuesList;

constexpr float kHcEps = 1e-3f, kNormEps = 1e-3f;

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

struct Gates {
  Values pre, post, comb;  // [n], [n], [n, n]
};

// One token's gates from its streams x [n * hidden].
Gates gates(const double* x, std::size_t n, std::size_t hidden, const Values& fn,
            const Values& scale, const Values& base, int iterations) {
  const std::size_t width = n * hidden;
  double squares = 0;
  for (std::size_t i = 0; i < width; ++i) squares += x[i] * x[i];
  const double rms = 1 / std::sqrt(squares / static_cast<double>(width) + kNormEps);
  Values raw;
  for (std::size_t m = 0; m < base.size(); ++m) {
    double dot = 0;
    for (std::size_t i = 0; i < width; ++i) dot += x[i] * fn[m * width + i];
    raw.push_back(dot * rms * scale[std::min<std::size_t>(m / n, 2)] + base[m]);
  }
  Gates g;
  for (std::size_t j = 0; j < n; ++j) g.pre.push_back(sigmoid(raw[j]) + kHcEps);
  if (base.size() == n) return g;
  for (std::size_t j = 0; j < n; ++j) g.post.push_back(2 * sigmoid(raw[n + j]));
  g.comb.resize(n * n);
  for (std::size_t j = 0; j < n; ++j) {
    double sum = 0;
    for (std::size_t k = 0; k < n; ++k) sum += std::exp(raw[2 * n + j * n + k]);
    for (std::size_t k = 0; k < n; ++k) {
      g.comb[j * n + k] = std::exp(raw[2 * n + j * n + k]) / sum + kHcEps;
    }
  }
  for (int step = 0; step < 2 * iterations - 1; ++step) {
    for (std::size_t line = 0; line < n; ++line) {
      const auto at = [&](std::size_t i) -> double& {
        return g.comb[step % 2 == 0 ? i * n + line : line * n + i];
      };
      double sum = kHcEps;
      for (std::size_t i = 0; i < n; ++i) sum += at(i);
      for (std::size_t i = 0; i < n; ++i) at(i) /= sum;
    }
  }
  return g;
}

// Inputs: streams, fn, scale, base. Outputs: x, post, comb (x alone for a head).
ValuesList collapse(const ValuesList& in, std::size_t n, std::size_t hidden, int iterations) {
  ValuesList out(in[2].size() == 1 ? 1 : 3);
  for (std::size_t t = 0; t < in[0].size(); t += n * hidden) {
    const double* x = in[0].data() + t;
    const Gates g = gates(x, n, hidden, in[1], in[2], in[3], iterations);
    for (std::size_t i = 0; i < hidden; ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < n; ++j) sum += g.pre[j] * x[j * hidden + i];
      out[0].push_back(sum);
    }
    if (out.size() == 1) continue;
    out[1].insert(out[1].end(), g.post.begin(), g.post.end());
    out[2].insert(out[2].end(), g.comb.begin(), g.comb.end());
  }
  return out;
}

// Inputs: a, streams, post, comb; the first index of comb is the source stream.
Values spread(const ValuesList& in, std::size_t n, std::size_t hidden) {
  Values y;
  for (std::size_t t = 0; t < in[0].size() / hidden; ++t) {
    for (std::size_t k = 0; k < n; ++k) {
      for (std::size_t i = 0; i < hidden; ++i) {
        double sum = in[2][t * n + k] * in[0][t * hidden + i];
        for (std::size_t j = 0; j < n; ++j) {
          sum += in[3][(t * n + j) * n + k] * in[1][(t * n + j) * hidden + i];
        }
        y.push_back(sum);
      }
    }
  }
  return y;
}

HcWeights weights_of(const TensorList& in) {
  return {.fn = {in[1], {}, {}}, .scale = in[2], .base = in[3]};
}

TEST(GradientHcTest, PreThroughAllThreeOutputs) {
  for (const std::int64_t n : {2, 4}) {
    for (const int iterations : {1, 20}) {
      const std::int64_t hidden = 11, mixes = (2 + n) * n;
      expect_gradients(
          {random_f32({3, n, hidden}, 1), random_f32({mixes, n * hidden}, 2, 0.2f),
           random_f32({3}, 3), random_f32({mixes}, 4)},
          [&](ExecContext& ctx, const TensorList& in) -> TensorList {
            const auto [x, post, comb] =
                ops::hc_pre(ctx, in[0], weights_of(in), {iterations, kHcEps, kNormEps});
            return {x, post, comb};
          },
          [&](const ValuesList& in) {
            return collapse(in, static_cast<std::size_t>(n), static_cast<std::size_t>(hidden),
                            iterations);
          });
    }
  }
}

// More tokens than one range of the kernel, and none a multiple of its lanes.
TEST(GradientHcTest, PreOverManyTokens) {
  expect_gradients(
      {random_f32({83, 2, 3}, 1), random_f32({8, 6}, 2, 0.3f), random_f32({3}, 3),
       random_f32({8}, 4)},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        const auto [x, post, comb] = ops::hc_pre(ctx, in[0], weights_of(in), {3, kHcEps, kNormEps});
        return {x, post, comb};
      },
      [&](const ValuesList& in) { return collapse(in, 2, 3, 3); });
}

TEST(GradientHcTest, Head) {
  expect_gradients(
      {random_f32({5, 4, 9}, 1), random_f32({4, 36}, 2, 0.2f), random_f32({1}, 3),
       random_f32({4}, 4)},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::hc_head(ctx, in[0], weights_of(in), {20, kHcEps, kNormEps})};
      },
      [&](const ValuesList& in) { return collapse(in, 4, 9, 20); });
}

// comb is asymmetric, so that a transposed one is noticed, and hidden crosses a block of columns.
TEST(GradientHcTest, PostKeepsTheOrientation) {
  for (const std::int64_t n : {2, 3, 4}) {
    const std::int64_t hidden = n == 3 ? 277 : 13;
    expect_gradients(
        {random_f32({2, hidden}, 1), random_f32({2, n, hidden}, 2), random_f32({2, n}, 3),
         random_f32({2, n, n}, 4)},
        [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          return {ops::hc_post(ctx, in[0], in[1], in[2], in[3])};
        },
        [&](const ValuesList& in) -> ValuesList {
          return {spread(in, static_cast<std::size_t>(n), static_cast<std::size_t>(hidden))};
        });
  }
}

// Three streams of one value each: stream 0 goes to stream 1 alone.
TEST(GradientHcTest, PostSendsTheGradientBackToTheSource) {
  TestContext tc(Numerics::fp32);
  Tensor comb = Tensor::zeros({1, 3, 3}, DType::f32), dy = Tensor::zeros({1, 3, 1}, DType::f32);
  comb.data<float>()[0 * 3 + 1] = 1;
  dy.data<float>()[1] = 5;
  Tape tape(tc.allocator, 4);
  TensorList gradients;
  const TensorList in = test::as_parameters(
      tape, {random_f32({1, 1}, 1), random_f32({1, 3, 1}, 2), random_f32({1, 3}, 3), comb},
      gradients);
  tc.ctx.set_tape(&tape);
  test::add_probe(tape, ops::hc_post(tc.ctx, in[0], in[1], in[2], in[3]), dy);
  tape.backward(tc.ctx);
  EXPECT_EQ(test::values_of(gradients[1]), (Values{5, 0, 0}));
  const Values streams = test::values_of(in[1]), dcomb = test::values_of(gradients[3]);
  for (std::size_t j = 0; j < 3; ++j) {
    for (std::size_t k = 0; k < 3; ++k) {
      EXPECT_FLOAT_EQ(static_cast<float>(dcomb[j * 3 + k]),
                      k == 1 ? static_cast<float>(5 * streams[j]) : 0.0f);
    }
  }
}

// Around a sub-layer: the streams get gradients from both ends, and x may be dropped in between.
TEST(GradientHcTest, AroundASublayer) {
  const std::int64_t n = 4, hidden = 10, mixes = 24;
  for (const bool drop : {false, true}) {
    expect_gradients(
        {random_f32({3, n, hidden}, 1), random_f32({mixes, n * hidden}, 2, 0.2f),
         random_f32({3}, 3), random_f32({mixes}, 4)},
        [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          const auto [x, post, comb] =
              ops::hc_pre(ctx, in[0], weights_of(in), {20, kHcEps, kNormEps});
          return {ops::hc_post(ctx, drop ? recompute(ctx, x) : x, in[0], post, comb)};
        },
        [&](const ValuesList& in) -> ValuesList {
          const ValuesList g = collapse(in, 4, 10, 20);
          return {spread({g[0], in[0], g[1], g[2]}, 4, 10)};
        });
  }
}

struct AroundRun {
  Tensor y;
  TensorList gradients;
};
AroundRun around(int n_threads, Numerics numerics, bool taped) {
  TestContext tc(numerics, n_threads);
  Tape tape(tc.allocator, 4);
  const Tensor streams = test::to_dtype(random_f32({150, 4, 70}, 1), tc.ctx.activation_dtype());
  TensorList in{streams, random_f32({24, 280}, 2, 0.1f), random_f32({3}, 3), random_f32({24}, 4)};
  AroundRun run;
  if (taped) {
    in = test::as_parameters(tape, in, run.gradients);
    tc.ctx.set_tape(&tape);
  }
  const auto [x, post, comb] = ops::hc_pre(tc.ctx, in[0], weights_of(in), {20, kHcEps, kNormEps});
  run.y = ops::hc_post(tc.ctx, x, in[0], post, comb);
  if (taped) {
    test::add_probe(tape, run.y, random_f32(run.y.shape(), 9));
    tape.backward(tc.ctx);
  }
  return run;
}

TEST(GradientHcTest, BitsDependNeitherOnThreadsNorOnTheTape) {
  for (const Numerics numerics : {Numerics::fp32, Numerics::official}) {
    const AroundRun one = around(1, numerics, true), three = around(3, numerics, true);
    EXPECT_TRUE(same_bits(one.y, around(2, numerics, false).y));
    for (std::size_t i = 0; i < one.gradients.size(); ++i) {
      EXPECT_TRUE(same_bits(one.gradients[i], three.gradients[i])) << i;
    }
  }
}

// bf16 streams: the gradient is that of the plain formula at the rounded streams.
TEST(GradientHcTest, Bf16IsStraightThrough) {
  const AroundRun run = around(2, Numerics::official, true);
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 4);
  TensorList gradients;
  const Tensor streams =
      test::to_dtype(test::to_dtype(random_f32({150, 4, 70}, 1), DType::bf16), DType::f32);
  const TensorList in = test::as_parameters(
      tape, {streams, random_f32({24, 280}, 2, 0.1f), random_f32({3}, 3), random_f32({24}, 4)},
      gradients);
  tc.ctx.set_tape(&tape);
  const auto [x, post, comb] = ops::hc_pre(tc.ctx, in[0], weights_of(in), {20, kHcEps, kNormEps});
  test::add_probe(tape, ops::hc_post(tc.ctx, x, in[0], post, comb), random_f32({150, 4, 70}, 9));
  tape.backward(tc.ctx);
  for (std::size_t i = 0; i < 4; ++i) {
    // x is rounded to 8 bits (relative error up to 2e-3) and enters the gradient of post, whose
    // sums over tokens cancel in part.
    EXPECT_LT(test::relative_l2(run.gradients[i], test::values_of(gradients[i])), 6e-3) << i;
  }
}

TEST(GradientHcTest, NoTokens) {
  TestContext tc(Numerics::fp32);
  const TensorList gradients = test::tape_gradients(
      tc,
      {Tensor::empty({0, 4, 6}, DType::f32), random_f32({24, 24}, 2), random_f32({3}, 3),
       random_f32({24}, 4)},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        const auto [x, post, comb] = ops::hc_pre(ctx, in[0], weights_of(in), {2, kHcEps, kNormEps});
        return {ops::hc_post(ctx, x, in[0], post, comb)};
      });
  for (const double v : test::values_of(gradients[1])) EXPECT_EQ(v, 0);
}

}  // namespace
}  // namespace hadal
