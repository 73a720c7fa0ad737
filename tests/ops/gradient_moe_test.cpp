// Router, experts and balance loss backwards against differences in f64.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "ops/moe.h"
#include "reference/reference.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::expect_gradients;
using test::random_f32;
using test::same_bits;
using test::TestContext;
using test::Values;
using test::ValuesList;

Tensor ints(Shape shape, const std::vector<std::int32_t>& v) {
  Tensor t = Tensor::empty(shape, DType::i32);
  std::copy(v.begin(), v.end(), t.data<std::int32_t>());
  return t;
}
Tensor floats(Shape shape, const std::vector<float>& v) {
  Tensor t = Tensor::empty(shape, DType::f32);
  std::copy(v.begin(), v.end(), t.data<float>());
  return t;
}

double score(double logit) {
  return std::sqrt(logit > 30 ? logit : std::log1p(std::exp(logit)));
}

Values weights_of(const Values& logits, std::size_t n_experts, const Tensor& experts,
                  double factor) {
  const auto topk = static_cast<std::size_t>(experts.dim(1));
  Values weights;
  for (std::size_t t = 0; t < logits.size() / n_experts; ++t) {
    const std::int32_t* chosen = experts.data<std::int32_t>() + t * topk;
    double sum = 0;
    for (std::size_t k = 0; k < topk; ++k) {
      sum += score(logits[t * n_experts + static_cast<std::size_t>(chosen[k])]);
    }
    for (std::size_t k = 0; k < topk; ++k) {
      weights.push_back(factor *
                        score(logits[t * n_experts + static_cast<std::size_t>(chosen[k])]) / sum);
    }
  }
  return weights;
}

TEST(GradientRouteTest, LearnedHashedAndForced) {
  TestContext tc(Numerics::fp32);
  Tensor logits = random_f32({5, 7}, 1, 3.0f);
  const Tensor bias = random_f32({7}, 2);
  const Tensor ids = ints({5}, {0, 2, 2, 1, 0});
  const Tensor table = ints({3, 2}, {6, 0, 1, 2, 3, 4});
  const ops::Routing learned = ops::route_learned(tc.ctx, logits, bias, 3, 1.5f);
  const Tensor forced = ints({5, 2}, {1, 0, 5, 6, 0, 3, 2, 1, 4, 2});
  expect_gradients(
      {logits},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::route_learned(ctx, in[0], bias, 3, 1.5f).weights,
                ops::route_hashed(ctx, in[0], ids, table, 2.5f).weights,
                ops::route_forced(ctx, in[0], forced, 2.0f).weights};
      },
      [&](const ValuesList& in) -> ValuesList {
        const Tensor hashed = ints({5, 2}, {6, 0, 3, 4, 3, 4, 1, 2, 6, 0});
        return {weights_of(in[0], 7, learned.experts, 1.5), weights_of(in[0], 7, hashed, 2.5),
                weights_of(in[0], 7, forced, 2.0)};
      });
}

// Where softplus is e^l, far below zero, and where it is l.
TEST(GradientRouteTest, ExtremeLogits) {
  const Tensor forced = ints({3, 2}, {0, 1, 0, 1, 0, 1});
  expect_gradients(
      {floats({3, 2}, {-16.0f, -17.5f, -40.0f, -39.0f, 25.0f, 21.0f})},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::route_forced(ctx, in[0], forced, 1.0f).weights};
      },
      [&](const ValuesList& in) -> ValuesList { return {weights_of(in[0], 2, forced, 1.0)}; });
}

TEST(GradientRouteTest, ForcedWithItsOwnChoiceIsTheSameRouting) {
  TestContext tc(Numerics::official);
  Tensor logits = random_f32({40, 8}, 1);
  for (std::int64_t t = 0; t < 10; ++t) {  // ties
    std::fill_n(logits.data<float>() + t * 8, 8, 0.5f);
  }
  const Tensor bias = Tensor::zeros({8}, DType::f32);
  const ops::Routing learned = ops::route_learned(tc.ctx, logits, bias, 3, 1.5f);
  const ops::Routing forced = ops::route_forced(tc.ctx, logits, learned.experts, 1.5f);
  EXPECT_TRUE(same_bits(learned.experts, forced.experts));
  EXPECT_TRUE(same_bits(learned.weights, forced.weights));
  EXPECT_EQ(learned.experts.data<std::int32_t>()[2], 2);
}

TEST(GradientRouteTest, ForcedRefusesAnExpertThatDoesNotExist) {
  TestContext tc(Numerics::fp32);
  for (const std::int32_t id : {-1, 4}) {
    EXPECT_THROW(static_cast<void>(
                     ops::route_forced(tc.ctx, random_f32({1, 4}, 1), ints({1, 2}, {0, id}), 1.0f)),
                 Error);
  }
}

// The choice is kept: a rebuilt routing has the same weights although its bias has changed since.
TEST(GradientRouteTest, RebuildingDoesNotChooseAgain) {
  TestContext tc(Numerics::fp32);
  Tensor bias = random_f32({6}, 2);
  const TensorList x{random_f32({9, 6}, 1)};
  const auto run = [&](bool drop) {
    const Tensor own_bias = test::to_dtype(bias, DType::f32);
    Tape tape(tc.allocator, 1);
    TensorList gradients;
    const TensorList in = test::as_parameters(tape, x, gradients);
    tc.ctx.set_tape(&tape);
    ops::Routing r = ops::route_learned(tc.ctx, in[0], own_bias, 2, 1.0f);
    if (drop) r.weights = recompute(tc.ctx, r.weights);
    const ExpertWeights e{{random_f32({4, 3}, 5), {}, {}},
                          {random_f32({4, 3}, 6), {}, {}},
                          {random_f32({3, 4}, 7), {}, {}}};
    const std::vector<ExpertWeights> experts(6, e);
    const Tensor y = ops::moe_experts(tc.ctx, random_f32({9, 3}, 8), r, experts, {}, {});
    r = {};
    std::fill_n(own_bias.data<float>(), 6, 0.0f);
    own_bias.data<float>()[0] = 100;
    test::add_probe(tape, y, random_f32({9, 3}, 9));
    tape.backward(tc.ctx);
    tc.ctx.set_tape(nullptr);
    return gradients[0];
  };
  EXPECT_TRUE(same_bits(run(false), run(true)));
}

// The inputs of an expert test: x, routing weights, then gate, up and down of each expert.
struct Mixture {
  std::int64_t hidden, width, n_routed, n_shared;
  Tensor experts;  // [n_tokens, topk]
  ops::SwigluLimits limits;

  [[nodiscard]] TensorList inputs(float spread) const {
    TensorList in{random_f32({experts.dim(0), hidden}, 1), random_f32(experts.shape(), 2)};
    for (std::int64_t e = 0; e < n_routed + n_shared; ++e) {
      const auto seed = static_cast<std::uint64_t>(10 + 3 * e);
      in.push_back(random_f32({width, hidden}, seed, spread));
      in.push_back(random_f32({width, hidden}, seed + 1, spread));
      in.push_back(random_f32({hidden, width}, seed + 2, spread));
    }
    return in;
  }

  [[nodiscard]] Tensor run(ExecContext& ctx, const TensorList& in,
                           ClampCounts* clamps = nullptr) const {
    std::vector<ExpertWeights> all;
    for (std::size_t i = 2; i < in.size(); i += 3) {
      all.push_back({{in[i], {}, {}}, {in[i + 1], {}, {}}, {in[i + 2], {}, {}}});
    }
    const auto n = static_cast<std::size_t>(n_routed);
    return ops::moe_experts(ctx, in[0], {experts, in[1]}, std::span(all).first(n),
                            std::span(all).subspan(n), limits, clamps);
  }

  [[nodiscard]] Values reference(const ValuesList& in) const {
    const auto h = static_cast<std::size_t>(hidden), n = static_cast<std::size_t>(n_routed);
    const auto topk = static_cast<std::size_t>(experts.dim(1));
    const auto matrix = [](const Values& v, std::size_t cols) {
      reference::Matrix m;
      for (std::size_t i = 0; i < v.size(); i += cols)
        m.push_back({v.begin() + long(i), v.begin() + long(i + cols)});
      return m;
    };
    Values y(in[0].size());
    for (std::size_t t = 0; t < y.size() / h; ++t) {
      const Values x(in[0].begin() + long(t * h), in[0].begin() + long((t + 1) * h));
      const auto add = [&](std::size_t e, double weight, double limit) {
        const Values out = reference::expert(x, matrix(in[2 + 3 * e], h), matrix(in[3 + 3 * e], h),
                                             matrix(in[4 + 3 * e], static_cast<std::size_t>(width)),
                                             weight, limit);
        for (std::size_t i = 0; i < h; ++i) y[t * h + i] += out[i];
      };
      for (std::size_t k = 0; k < topk; ++k) {
        add(static_cast<std::size_t>(experts.data<std::int32_t>()[t * topk + k]),
            in[1][t * topk + k], static_cast<double>(limits.routed));
      }
      for (std::size_t s = n; s < n + static_cast<std::size_t>(n_shared); ++s) {
        add(s, 1, static_cast<double>(limits.shared));
      }
    }
    return y;
  }

  // Whether no pre-activation is so close to a clamp that a difference would step over it, and
  // how many are beyond.
  [[nodiscard]] ClampCounts clear_of_kinks(const TensorList& in) const {
    ClampCounts beyond;
    const auto look = [&](std::int64_t t, std::int64_t e, float limit) {
      if (limit == 0) return;
      for (std::int64_t r = 0; r < width; ++r) {
        double pre[2] = {};
        for (std::int64_t c = 0; c < hidden; ++c) {
          for (std::size_t i = 0; i < 2; ++i) {
            pre[i] +=
                double(in[0].data<float>()[t * hidden + c]) *
                double(in[static_cast<std::size_t>(2 + 3 * e) + i].data<float>()[r * hidden + c]);
          }
        }
        for (const double p : pre) EXPECT_GT(std::abs(std::abs(p) - double(limit)), 1e-4);
        beyond += {pre[0] > double(limit), pre[1] > double(limit), pre[1] < -double(limit), 1};
      }
    };
    for (std::int64_t t = 0; t < experts.dim(0); ++t) {
      for (std::int64_t k = 0; k < experts.dim(1); ++k) {
        look(t, experts.data<std::int32_t>()[t * experts.dim(1) + k], limits.routed);
      }
      for (std::int64_t s = 0; s < n_shared; ++s) look(t, n_routed + s, limits.shared);
    }
    return beyond;
  }
};

// Expert 2 has no token, expert 0 many.
Mixture small_mixture(ops::SwigluLimits limits) {
  return {.hidden = 7,
          .width = 5,
          .n_routed = 4,
          .n_shared = 1,
          .experts = ints({6, 2}, {0, 1, 3, 0, 0, 3, 1, 0, 0, 1, 1, 3}),
          .limits = limits};
}

TEST(GradientExpertsTest, WithoutClamps) {
  const Mixture m = small_mixture({});
  expect_gradients(
      m.inputs(0.4f),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {m.run(ctx, in)}; },
      [&](const ValuesList& in) -> ValuesList { return {m.reference(in)}; });
}

TEST(GradientExpertsTest, ClampsOnBothSidesAndTheirCounts) {
  const Mixture m = small_mixture({.routed = 0.75f, .shared = 0.5f});
  const TensorList x = m.inputs(0.4f);
  const ClampCounts beyond = m.clear_of_kinks(x);
  EXPECT_GT(beyond.gate_above, 3);
  EXPECT_GT(beyond.up_above, 3);
  EXPECT_GT(beyond.up_below, 3);
  TestContext tc(Numerics::fp32);
  ClampCounts counted;
  static_cast<void>(m.run(tc.ctx, x, &counted));
  EXPECT_EQ(counted, beyond);
  expect_gradients(
      x, [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {m.run(ctx, in)}; },
      [&](const ValuesList& in) -> ValuesList { return {m.reference(in)}; });
}

TEST(GradientExpertsTest, OnlyWhatIsClampedIsCounted) {
  const Mixture m = small_mixture({.routed = 0, .shared = 0.5f});
  TestContext tc(Numerics::fp32);
  ClampCounts counted;
  static_cast<void>(m.run(tc.ctx, m.inputs(0.4f), &counted));
  EXPECT_EQ(counted.n_values, 6 * 5);  // the shared expert, once a token
}

// Two shared experts, and no routed ones.
TEST(GradientExpertsTest, SharedAlone) {
  const Mixture m{.hidden = 6,
                  .width = 4,
                  .n_routed = 0,
                  .n_shared = 2,
                  .experts = Tensor::empty({3, 0}, DType::i32),
                  .limits = {}};
  expect_gradients(
      m.inputs(0.5f),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {m.run(ctx, in)}; },
      [&](const ValuesList& in) -> ValuesList { return {m.reference(in)}; });
}

TEST(GradientExpertsTest, AnExpertWithoutTokensKeepsItsGradient) {
  const Mixture m = small_mixture({});
  TestContext tc(Numerics::fp32);
  Tape tape(tc.allocator, 17);
  TensorList gradients;
  const TensorList in = test::as_parameters(tape, m.inputs(0.4f), gradients);
  for (const std::size_t i : {8, 9, 10}) {  // expert 2
    std::memset(gradients[i].bytes(), 0xff, gradients[i].nbytes());
  }
  std::fill_n(gradients[2].data<float>(), gradients[2].numel(), 100.0f);
  tc.ctx.set_tape(&tape);
  test::add_probe(tape, m.run(tc.ctx, in), random_f32({6, 7}, 3));
  tape.backward(tc.ctx);
  for (const std::size_t i : {8, 9, 10}) {
    for (std::size_t b = 0; b < gradients[i].nbytes(); ++b) {
      ASSERT_EQ(gradients[i].bytes()[b], std::byte{0xff});
    }
  }
  for (const double g : test::values_of(gradients[2])) {  // added to, not overwritten
    EXPECT_GT(g, 50);
    EXPECT_NE(g, 100);
  }
}

// Some matrices and inputs learn, the others are frozen or constants.
TEST(GradientExpertsTest, FrozenPartsAreLeftOut) {
  const Mixture m = small_mixture({});
  const TensorList x = m.inputs(0.4f);
  TestContext tc(Numerics::fp32);
  const auto gradient_of = [&](const std::vector<std::size_t>& learning) {
    Tape tape(tc.allocator, static_cast<VariableId>(x.size()));
    TensorList in = x, gradients;
    for (const std::size_t i : learning) {
      in[i] = in[i].as_variable(static_cast<VariableId>(i + 1));
      gradients.push_back(Tensor::zeros(x[i].shape(), DType::f32));
      tape.set_gradient(static_cast<VariableId>(i + 1), gradients.back());
    }
    tc.ctx.set_tape(&tape);
    test::add_probe(tape, m.run(tc.ctx, in), random_f32({6, 7}, 3));
    tape.backward(tc.ctx);
    tc.ctx.set_tape(nullptr);
    return gradients;
  };
  std::vector<std::size_t> all(x.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  const TensorList wanted = gradient_of(all);
  for (const std::size_t i : {0, 1, 3, 4, 14}) {
    EXPECT_TRUE(same_bits(gradient_of({i})[0], wanted[i])) << i;
  }
}

// Enough tokens for several groups of rows, with one expert that alone fills more than one.
Mixture large_mixture() {
  const std::int64_t n = 4300, topk = 2;
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < n; ++t) {
    ids.push_back(1);
    ids.push_back(static_cast<std::int32_t>(t % 3 == 0 ? 0 : 2 + t % 2));
  }
  return {.hidden = 24,
          .width = 20,
          .n_routed = 5,
          .n_shared = 1,
          .experts = ints({n, topk}, ids),
          .limits = {.routed = 1.0f, .shared = 0}};
}

TensorList large_gradients(const Mixture& m, int n_threads, Numerics numerics, Tensor* y) {
  TestContext tc(numerics, n_threads);
  TensorList in = m.inputs(0.3f), gradients;
  in[0] = test::to_dtype(in[0], tc.ctx.activation_dtype());
  Tape tape(tc.allocator, static_cast<VariableId>(in.size()));
  in = test::as_parameters(tape, in, gradients);
  tc.ctx.set_tape(&tape);
  *y = m.run(tc.ctx, in);
  test::add_probe(tape, *y, random_f32(y->shape(), 3));
  tape.backward(tc.ctx);
  return gradients;
}

TEST(GradientExpertsTest, BitsDependNeitherOnThreadsNorOnTheTape) {
  const Mixture m = large_mixture();
  for (const Numerics numerics : {Numerics::fp32, Numerics::official}) {
    Tensor y1, y3;
    const TensorList one = large_gradients(m, 1, numerics, &y1);
    const TensorList three = large_gradients(m, 3, numerics, &y3);
    TestContext tc(numerics, 2);
    TensorList in = m.inputs(0.3f);
    in[0] = test::to_dtype(in[0], tc.ctx.activation_dtype());
    EXPECT_TRUE(same_bits(y1, m.run(tc.ctx, in)));
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(same_bits(one[i], three[i])) << i;
    }
  }
}

// The large case against the plain sums of training.md §4.7 in double.
TEST(GradientExpertsTest, ManyRowsEqualTheFormula) {
  const Mixture m = large_mixture();
  Tensor y;
  const TensorList found = large_gradients(m, 2, Numerics::fp32, &y);
  const TensorList in = m.inputs(0.3f);
  const Tensor dy = random_f32({m.experts.dim(0), m.hidden}, 3);
  ValuesList wanted;
  for (const Tensor& t : in) wanted.emplace_back(static_cast<std::size_t>(t.numel()));
  const auto add = [&](std::int64_t t, std::size_t e, double weight, double limit) {
    const float* x = in[0].data<float>() + t * m.hidden;
    const float* d = dy.data<float>() + t * m.hidden;
    const float *gate = in[2 + 3 * e].data<float>(), *up = in[3 + 3 * e].data<float>();
    const float* down = in[4 + 3 * e].data<float>();
    double dweight = 0;
    for (std::int64_t r = 0; r < m.width; ++r) {
      double g = 0, u = 0, dh = 0;
      for (std::int64_t c = 0; c < m.hidden; ++c) {
        g += double(x[c]) * double(gate[r * m.hidden + c]);
        u += double(x[c]) * double(up[r * m.hidden + c]);
        dh += double(d[c]) * double(down[c * m.width + r]);
      }
      const bool gate_cut = limit > 0 && g > limit, up_cut = limit > 0 && std::abs(u) > limit;
      if (gate_cut) g = limit;
      if (up_cut) u = std::copysign(limit, u);
      const double s = 1 / (1 + std::exp(-g));
      dweight += dh * g * s * u;
      const double du = up_cut ? 0 : weight * dh * g * s;
      const double dg = gate_cut ? 0 : weight * dh * u * s * (1 + g * (1 - s));
      for (std::int64_t c = 0; c < m.hidden; ++c) {
        const auto at = static_cast<std::size_t>(r * m.hidden + c);
        wanted[2 + 3 * e][at] += dg * double(x[c]);
        wanted[3 + 3 * e][at] += du * double(x[c]);
        wanted[4 + 3 * e][static_cast<std::size_t>(c * m.width + r)] +=
            double(d[c]) * weight * g * s * u;
        wanted[0][static_cast<std::size_t>(t * m.hidden + c)] +=
            dg * double(gate[at]) + du * double(up[at]);
      }
    }
    return dweight;
  };
  for (std::int64_t t = 0; t < m.experts.dim(0); ++t) {
    for (std::int64_t k = 0; k < 2; ++k) {
      const auto e = static_cast<std::size_t>(m.experts.data<std::int32_t>()[2 * t + k]);
      wanted[1][static_cast<std::size_t>(2 * t + k)] =
          add(t, e, double(in[1].data<float>()[2 * t + k]), 1.0);
    }
    add(t, 5, 1, 0);
  }
  // A few of the 350 000 pre-activations lie within an f32 rounding of the clamp.
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_LT(test::relative_l2(found[i], wanted[i]), 1e-4) << i;
  }
}

// FP4 experts with bf16 activations: the gradient of the values that were multiplied, for the
// master that they stand for.
TEST(GradientExpertsTest, Fp4IsStraightThrough) {
  const std::int64_t hidden = 128, width = 64, n = 9;
  const Tensor ids = ints({n, 2}, {0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1});
  const Tensor weights = random_f32({n, 2}, 2), dy = random_f32({n, hidden}, 3);
  const Tensor x = test::to_dtype(random_f32({n, hidden}, 1), DType::bf16);
  const auto run = [&](Numerics numerics, bool fp4) {
    TestContext tc(numerics);
    Tape tape(tc.allocator, 8);
    TensorList masters, stored;
    std::vector<QuantTensor> quantised;
    for (std::uint64_t i = 0; i < 6; ++i) {
      const Shape shape = i % 3 == 2 ? Shape{hidden, width} : Shape{width, hidden};
      quantised.push_back(quantize_fp4(random_f32(shape, 10 + i, 0.1f)));
      if (fp4) {
        stored.push_back(quantised.back().data);
        continue;
      }
      Tensor plain = Tensor::empty(shape, DType::f32);
      dequantize_rows(quantised.back(), 0, shape[0], plain.data<float>());
      stored.push_back(plain);
    }
    TensorList in{fp4 ? x : test::to_dtype(x, DType::f32), weights}, gradients;
    in.insert(in.end(), stored.begin(), stored.end());
    in = test::as_parameters(tape, in, gradients);
    std::vector<ExpertWeights> experts;
    for (std::size_t e = 0; e < 2; ++e) {
      const auto matrix = [&](std::size_t i) -> QuantTensor {
        if (!fp4) return {in[2 + i], {}, {}};
        return {in[2 + i], quantised[i].scale, quantised[i].block};
      };
      experts.push_back({matrix(3 * e), matrix(3 * e + 1), matrix(3 * e + 2)});
    }
    tc.ctx.set_tape(&tape);
    test::add_probe(tape, ops::moe_experts(tc.ctx, in[0], {ids, in[1]}, experts, {}, {10, 10}), dy);
    tape.backward(tc.ctx);
    return gradients;
  };
  const TensorList found = run(Numerics::official, true), plain = run(Numerics::fp32, false);
  for (std::size_t i = 0; i < found.size(); ++i) {
    // Between them lie the roundings of x and the hidden rows to E4M3 (3 bits: 2 % RMS each) and of
    // gate and up to bf16.
    EXPECT_LT(test::relative_l2(found[i], test::values_of(plain[i])), 0.06) << i;
    EXPECT_GT(test::relative_l2(found[i], test::values_of(plain[i])), 1e-4) << i;
  }
}

TEST(GradientExpertsTest, NoTokens) {
  Mixture m = small_mixture({});
  m.experts = Tensor::empty({0, 2}, DType::i32);
  TestContext tc(Numerics::fp32);
  const TensorList gradients = test::tape_gradients(
      tc, m.inputs(0.4f),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {m.run(ctx, in)}; });
  for (const Tensor& g : gradients) {
    for (const double v : test::values_of(g)) EXPECT_EQ(v, 0);
  }
}

// Samples of different lengths, one empty, one longer than a range of the kernel.
TEST(BalanceLossTest, EqualsTheFormulaAndItsGradient) {
  const std::int64_t n = 150, n_experts = 5, topk = 2;
  const std::vector<std::int64_t> bounds{0, 4, 4, 9, n};
  std::vector<std::int32_t> ids;
  for (std::int32_t t = 0; t < n; ++t) {
    ids.push_back(t % 3), ids.push_back(3 + t % 2);
  }
  const ops::Routing routing{ints({n, topk}, ids), {}};
  const auto reference = [&](const ValuesList& in) -> Values {
    Values losses;
    for (std::size_t s = 0; s + 1 < bounds.size(); ++s) {
      Values f(5), p(5);
      const auto length = static_cast<double>(bounds[s + 1] - bounds[s]);
      for (std::int64_t t = bounds[s]; t < bounds[s + 1]; ++t) {
        double sum = 0;
        for (std::int64_t e = 0; e < 5; ++e)
          sum += score(in[0][static_cast<std::size_t>(t * 5 + e)]);
        for (std::int64_t e = 0; e < 5; ++e) {
          p[static_cast<std::size_t>(e)] +=
              score(in[0][static_cast<std::size_t>(t * 5 + e)]) / sum / length;
        }
        for (std::int64_t k = 0; k < topk; ++k) {
          f[static_cast<std::size_t>(ids[static_cast<std::size_t>(t * topk + k)])] +=
              double(n_experts) / (double(topk) * length);
        }
      }
      losses.push_back(std::inner_product(f.begin(), f.end(), p.begin(), 0.0));
    }
    return losses;
  };
  const Tensor logits = random_f32({n, n_experts}, 1, 2.0f);
  TensorList of_threads;
  for (const int n_threads : {1, 3}) {
    TestContext tc(Numerics::fp32, n_threads);
    Tape tape(tc.allocator, 1);
    TensorList gradients;
    const TensorList in = test::as_parameters(tape, {logits}, gradients);
    tc.ctx.set_tape(&tape);
    const Tensor loss = ops::balance_loss(tc.ctx, in[0], routing, bounds, 0.25f);
    tape.backward(tc.ctx);
    const ValuesList at{test::values_of(logits)};
    const Values wanted = reference(at);
    for (std::size_t s = 0; s < wanted.size(); ++s) {
      EXPECT_NEAR(loss.data<float>()[s], wanted[s], 2e-6) << s;
    }
    ValuesList differences = test::central_differences(at, [&](const ValuesList& v) -> ValuesList {
      const Values l = reference(v);
      return {{std::accumulate(l.begin(), l.end(), 0.0)}};
    });
    const double probe = random_f32({1}, 1000).data<float>()[0];
    for (double& v : differences[0]) v *= 0.25 / probe;
    EXPECT_LT(test::relative_l2(gradients[0], differences[0]), 2e-5);
    of_threads.push_back(gradients[0]);
  }
  EXPECT_TRUE(same_bits(of_threads[0], of_threads[1]));
}

TEST(BalanceLossTest, IsOneWhenEven) {
  TestContext tc(Numerics::fp32);
  const ops::Routing routing{ints({2, 2}, {0, 1, 2, 3}), {}};
  const std::vector<std::int64_t> bounds{0, 2};
  const Tensor loss =
      ops::balance_loss(tc.ctx, floats({2, 4}, std::vector<float>(8, 0.3f)), routing, bounds, 1);
  EXPECT_FLOAT_EQ(loss.data<float>()[0], 1.0f);
  const Tensor load = Tensor::zeros({5}, DType::i64);
  ops::add_expert_load(tc.ctx, routing, load);
  const auto* n = load.data<const std::int64_t>();
  EXPECT_EQ(std::vector(n, n + 5), (std::vector<std::int64_t>{1, 1, 1, 1, 0}));
}

TEST(BalanceLossTest, RefusesBoundsThatDoNotCoverTheTokens) {
  TestContext tc(Numerics::fp32);
  const ops::Routing routing{ints({2, 1}, {0, 1}), {}};
  for (const std::vector<std::int64_t>& bounds :
       {std::vector<std::int64_t>{}, {0, 1}, {1, 2}, {0, 2, 1, 2}}) {
    EXPECT_THROW(
        static_cast<void>(ops::balance_loss(tc.ctx, random_f32({2, 2}, 1), routing, bounds, 1)),
        Error);
  }
}

}  // namespace
}  // namespace hadal
