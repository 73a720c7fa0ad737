// The compressor's pooling: backward against differences in f64.
#include <gtest/gtest.h>

#include <array>

#include "ops/compress_kv.h"
#include "ops/elementwise.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::random_f32;
using test::same_bits;
using test::TestContext;
using test::Values;
using test::ValuesList;

struct Case {
  const char* name;
  std::vector<std::int64_t> lengths;
  std::int64_t ratio, width;
  bool overlap;
};

struct Problem {
  Case c;
  std::vector<CompressSequence> sequences;
  std::int64_t n_tokens = 0;

  explicit Problem(const Case& problem) : c(problem) {
    std::int64_t entry = 0;
    for (const std::int64_t n : c.lengths) {
      sequences.push_back({n_tokens, n_tokens + n, 0, entry, {}});
      n_tokens += n, entry += n / c.ratio;
    }
  }
  [[nodiscard]] std::int64_t row() const { return c.width * (c.overlap ? 2 : 1); }
  [[nodiscard]] TensorList inputs() const {
    return {random_f32({n_tokens, row()}, 1), random_f32({n_tokens, row()}, 2, 2.0f),
            random_f32({c.ratio, row()}, 3)};
  }
  Tensor run(ExecContext& ctx, const TensorList& in) const {
    return ops::compress_kv(ctx, in[0], in[1], in[2], c.overlap, sequences);
  }
  [[nodiscard]] Values reference(const ValuesList& in) const {
    const auto width = static_cast<std::size_t>(c.width), n = static_cast<std::size_t>(row());
    const auto ratio = static_cast<std::size_t>(c.ratio);
    Values out;
    for (const CompressSequence& s : sequences) {
      const auto begin = static_cast<std::size_t>(s.begin);
      for (std::size_t e = 0; e < static_cast<std::size_t>(s.end - s.begin) / ratio; ++e) {
        for (std::size_t x = 0; x < width; ++x) {
          double sum = 0, value = 0;
          const auto add = [&](std::size_t p, std::size_t column) {
            const std::size_t at = (begin + p) * n + column;
            const double w = std::exp(in[1][at] + in[2][p % ratio * n + column]);
            sum += w, value += w * in[0][at];
          };
          if (c.overlap && e > 0) {
            for (std::size_t p = (e - 1) * ratio; p < e * ratio; ++p) add(p, x);
          }
          for (std::size_t p = e * ratio; p < (e + 1) * ratio; ++p) {
            add(p, c.overlap ? width + x : x);
          }
          out.push_back(value / sum);
        }
      }
    }
    return out;
  }
};

class CompressGradient : public testing::TestWithParam<Case> {};

TEST_P(CompressGradient, EqualsDifferences) {
  const Problem problem(GetParam());
  test::expect_gradients(
      problem.inputs(),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {problem.run(ctx, in)}; },
      [&](const ValuesList& in) -> ValuesList { return {problem.reference(in)}; });
}

TEST_P(CompressGradient, TailsGetNothing) {
  const Problem problem(GetParam());
  TestContext tc(Numerics::fp32);
  const TensorList g = test::tape_gradients(
      tc, problem.inputs(),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {problem.run(ctx, in)}; });
  for (const CompressSequence& s : problem.sequences) {
    const std::int64_t whole = (s.end - s.begin) / problem.c.ratio * problem.c.ratio;
    for (std::int64_t t = s.begin + whole; t < s.end; ++t) {
      for (std::int64_t x = 0; x < problem.row(); ++x) {
        EXPECT_EQ(g[0].data<float>()[t * problem.row() + x], 0.0f);
        EXPECT_EQ(g[1].data<float>()[t * problem.row() + x], 0.0f);
      }
    }
  }
}

// Nor does a tape change forward, nor may it: the gate that others see stays as it is.
TEST_P(CompressGradient, ThreadsAndTheTapeChangeNoBit) {
  const Problem problem(GetParam());
  for (const Numerics numerics : {Numerics::fp32, Numerics::official}) {
    std::vector<TensorList> results;
    for (const int threads : {1, 3}) {
      TestContext tc(numerics, threads);
      TensorList x = problem.inputs();
      const Tensor gate_before = test::to_dtype(x[1], DType::f32);
      TensorList plain_in = problem.inputs();
      const Tensor plain = problem.run(tc.ctx, plain_in);
      Tensor taped;
      results.push_back(
          test::tape_gradients(tc, x, [&](ExecContext& ctx, const TensorList& in) -> TensorList {
            taped = problem.run(ctx, in);
            return {taped};
          }));
      EXPECT_TRUE(same_bits(plain, taped));
      EXPECT_TRUE(same_bits(gate_before, x[1]));
    }
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CompressGradient,
                         testing::Values(Case{"no_entry_at_all", {1, 3}, 4, 3, true},
                                         Case{"overlap_ragged", {14, 1, 4, 9, 8}, 4, 5, true},
                                         Case{"without_overlap", {23, 2, 7}, 7, 5, false},
                                         Case{"wider_than_a_block", {9}, 4, 70, true}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(CompressGradient, ATokenInTheMiddleOfASequenceIsRefused) {
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 3);
  TensorList gradients;
  const TensorList in = test::as_parameters(
      tape, {random_f32({4, 3}, 1), random_f32({4, 3}, 2), random_f32({4, 3}, 3)}, gradients);
  tc.ctx.set_tape(&tape);
  Tensor kv = Tensor::zeros({4, 3}, DType::f32), gate = Tensor::zeros({4, 3}, DType::f32);
  const CompressSequence s{0, 4, 4, 0, {kv, gate}};
  EXPECT_THROW(static_cast<void>(ops::compress_kv(tc.ctx, in[0], in[1], in[2], false, {&s, 1})),
               Error);
}

// A mark on the result: made again from the same inputs to the same bits.
TEST(CompressGradient, Replays) {
  const Problem problem({"", {14, 9}, 4, 5, true});
  const auto gradients = [&](bool recomputed) {
    TestContext tc(Numerics::fp32);
    return test::tape_gradients(tc, problem.inputs(),
                                [&](ExecContext& ctx, const TensorList& in) -> TensorList {
                                  Tensor kept = ops::scale(ctx, in[1], 1.0f);
                                  Tensor y = problem.run(ctx, {in[0], kept, in[2]});
                                  if (recomputed) y = recompute(ctx, y);
                                  return {ops::scale(ctx, y, 2.0f)};
                                });
  };
  const TensorList with = gradients(true), without = gradients(false);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(with[i], without[i]));
}

}  // namespace
}  // namespace hadal
