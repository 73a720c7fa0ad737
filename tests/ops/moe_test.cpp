#include "ops/moe.h"

#include <numeric>

#include "core/rng.h"
#include "reference/reference.h"
#include "support/context.h"
#include "support/golden.h"

namespace hadal::test {
namespace {

Tensor floats(Shape shape, const std::vector<float>& v) {
  Tensor t = Tensor::empty(shape, DType::f32);
  std::copy(v.begin(), v.end(), t.data<float>());
  return t;
}
Tensor random_tensor(Rng& rng, Shape shape, float spread) {
  Tensor t = Tensor::empty(shape, DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = spread * rng.next_normal();
  return t;
}
reference::Matrix matrix(const TensorView& t) {
  reference::Matrix m;
  const std::vector<float> v = values(t);
  const auto cols = static_cast<std::size_t>(t.dim(1));
  for (std::size_t r = 0; r < v.size(); r += cols) {
    m.emplace_back(v.begin() + static_cast<std::ptrdiff_t>(r),
                   v.begin() + static_cast<std::ptrdiff_t>(r + cols));
  }
  return m;
}

TEST(MoeRoute, TiesGoToTheLowerExpertAndWeightsSumToTheScale) {
  TestContext t(Numerics::official);
  const Tensor logits = floats({2, 5}, {1, 1, 1, 1, 1, 0, 2, 2, 5, 2});
  const Tensor bias = Tensor::zeros({5}, DType::f32);
  const ops::Routing r = ops::route_learned(t.ctx, logits, bias, 3, 1.5f);
  EXPECT_EQ(values(r.experts), (std::vector<float>{0, 1, 2, 3, 1, 2}));
  for (int row = 0; row < 2; ++row) {
    const float* w = r.weights.data<const float>() + row * 3;
    EXPECT_NEAR(w[0] + w[1] + w[2], 1.5f, 1e-6);
  }
}

TEST(MoeRoute, BiasChoosesAndDoesNotWeigh) {
  TestContext t(Numerics::official);
  const Tensor logits = floats({1, 3}, {2, 1, -1});
  const Tensor bias = floats({3}, {0, 0, 10});
  const ops::Routing r = ops::route_learned(t.ctx, logits, bias, 2, 1.0f);
  EXPECT_EQ(values(r.experts), (std::vector<float>{2, 0}));
  const auto score = [](double v) { return std::sqrt(std::log1p(std::exp(v))); };
  EXPECT_NEAR(values(r.weights)[0], score(-1) / (score(-1) + score(2)), 1e-6);
}

TEST(MoeRoute, HashLayersTakeTheTableAndWeighByScores) {
  TestContext t(Numerics::official);
  Tensor ids = Tensor::empty({1}, DType::i32), table = Tensor::zeros({4, 2}, DType::i32);
  ids.data<std::int32_t>()[0] = 3;
  table.data<std::int32_t>()[6] = 1, table.data<std::int32_t>()[7] = 0;
  const ops::Routing r = ops::route_hashed(t.ctx, floats({1, 3}, {0, 0, 100}), ids, table, 2.0f);
  EXPECT_EQ(values(r.experts), (std::vector<float>{1, 0}));
  EXPECT_EQ(values(r.weights), (std::vector<float>{1, 1}));
}

// gate = -1000 is not clamped below (silu of it is 0), gate = 1000 becomes the limit, up is clamped
// on both sides. One input column selects the value.
TEST(MoeExperts, ClampsGateAboveAndUpOnBothSides) {
  TestContext t(Numerics::fp32);
  const auto run = [&](float gate, float up) {
    ExpertWeights e{{floats({1, 1}, {gate}), {}, {}},
                    {floats({1, 1}, {up}), {}, {}},
                    {floats({1, 1}, {1}), {}, {}}};
    ops::Routing r{Tensor::zeros({1, 1}, DType::i32), floats({1, 1}, {1})};
    return values(ops::moe_experts(t.ctx, floats({1, 1}, {1}), r, {&e, 1}, {}, {10, 10}))[0];
  };
  EXPECT_NEAR(run(-1000, 1), 0.0f, 1e-30);  // exp saturates at e^88
  EXPECT_NEAR(run(1000, 1), static_cast<float>(reference::silu(10)), 1e-5);
  EXPECT_NEAR(run(1, 1000), static_cast<float>(10 * reference::silu(1)), 1e-5);
  EXPECT_NEAR(run(1, -1000), static_cast<float>(-10 * reference::silu(1)), 1e-5);
}

TEST(MoeExperts, EqualsTheReferenceWithAnyNumberOfTokens) {
  Rng rng(5);
  const std::int64_t hidden = 48, width = 40, n_experts = 5, topk = 2;
  std::vector<ExpertWeights> routed;
  for (std::int64_t e = 0; e <= n_experts; ++e) {
    routed.push_back({{random_tensor(rng, {width, hidden}, 0.2f), {}, {}},
                      {random_tensor(rng, {width, hidden}, 0.2f), {}, {}},
                      {random_tensor(rng, {hidden, width}, 0.2f), {}, {}}});
  }
  const std::vector<ExpertWeights> shared = {routed.back()};
  routed.pop_back();
  for (const std::int64_t n : {0, 1, 2, 7, 33}) {
    TestContext t(Numerics::fp32);
    const Tensor x = random_tensor(rng, {n, hidden}, 1.0f);
    ops::Routing r{Tensor::empty({n, topk}, DType::i32), random_tensor(rng, {n, topk}, 1.0f)};
    for (std::int64_t i = 0; i < n; ++i) {
      const auto first = static_cast<std::int32_t>(rng.next_below(5));
      r.experts.data<std::int32_t>()[2 * i] = first;
      r.experts.data<std::int32_t>()[2 * i + 1] = (first + 2) % 5;
    }
    const std::vector<float> got =
        values(ops::moe_experts(t.ctx, x, r, routed, shared, {0.7f, 0.0f}));
    const reference::Matrix inputs = n > 0 ? matrix(x) : reference::Matrix{};
    std::vector<float> want;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto row = static_cast<std::size_t>(i);
      std::vector<double> sum(static_cast<std::size_t>(hidden));
      const auto add = [&](const ExpertWeights& e, double weight, double limit) {
        const auto y =
            reference::expert(inputs[row], matrix(e.gate_proj.data), matrix(e.up_proj.data),
                              matrix(e.down_proj.data), weight, limit);
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += y[c];
      };
      for (std::int64_t k = 0; k < topk; ++k) {
        add(routed[static_cast<std::size_t>(r.experts.data<const std::int32_t>()[i * topk + k])],
            static_cast<double>(r.weights.data<const float>()[i * topk + k]), 0.7f);
      }
      add(shared[0], 1, 0);
      for (const double v : sum) want.push_back(static_cast<float>(v));
    }
    // Two f32 sums of 48 and 40 terms of size one.
    if (n > 0)
      EXPECT_LE(difference(got, want).relative_l2, 1e-6) << n << " tokens";
    else
      EXPECT_TRUE(got.empty());
  }
}

}  // namespace
}  // namespace hadal::test
