#include "train/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/error.h"
#include "support/context.h"
#include "support/dense.h"
#include "train/initialise.h"
#include "train/small_config.h"
#include "train/zero_partition.h"

namespace hadal::train {
namespace {

using test::TestContext;
using ::testing::HasSubstr;

void random_gradients(const ParameterStore& store, unsigned seed, float sigma = 1e-2f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  for (const Parameter& p : store.parameters()) {
    if (!p.gradient) continue;
    for (std::int64_t i = 0; i < p.gradient.numel(); ++i) p.gradient.data<float>()[i] = normal(rng);
  }
}

// A model with an optimizer on so many threads.
struct Training {
  TestContext t;
  ParameterStore store{test::small_config()};
  Optimizer optimizer;

  explicit Training(int n_threads = 2, OptimizerOptions options = {},
                    Trained trained = Trained::all, std::span<const std::uint8_t> owned = {})
      : t(Numerics::fp32, n_threads), optimizer(store, std::move(options), trained, owned) {
    initialise(t.pool, store, 5);
  }
  StepStats step(unsigned seed, double lr = 1e-2) {
    random_gradients(store, seed);
    return optimizer.step(t.ctx, lr, optimizer.measure(t.ctx).norm());
  }
};

void expect_same_weights(const ParameterStore& a, const ParameterStore& b) {
  for (const Parameter& p : a.parameters()) {
    const Tensor& other = b.at(p.info.id).value;
    EXPECT_EQ(std::memcmp(p.value.bytes(), other.bytes(), other.nbytes()), 0) << p.info.name;
  }
}

std::vector<float> copy(const Tensor& t) {
  return {t.data<const float>(), t.data<const float>() + t.numel()};
}

test::Dense rows_of(const Tensor& t, const RowRange& rows) {
  test::Dense a(rows.end - rows.begin, t.dim(1));
  for (std::size_t i = 0; i < a.v.size(); ++i) {
    a.v[i] = t.data<const float>()[static_cast<std::size_t>(rows.begin * t.dim(1)) + i];
  }
  return a;
}

// The first step of everything, recomputed in f64 from the definitions of training.md §1.
TEST(Optimizer, FirstStepEqualsTheDefinitionForEveryParameter) {
  Training run;
  std::vector<std::vector<float>> before;
  for (const Parameter& p : run.store.parameters()) {
    before.push_back(p.value.dtype() == DType::f32 ? copy(p.value) : std::vector<float>{});
  }
  const double lr = 1e-2;
  const StepStats stats = run.step(1, lr);
  ASSERT_LT(stats.gradient_scale, 1.0) << "the case that clips is the one to look at";
  for (const Parameter& p : run.store.parameters()) {
    const std::vector<float>& old = before[p.info.id - 1];
    const double decay = p.info.decays ? 0.1 : 0.0;
    if (p.info.group == ParameterGroup::adamw) {
      for (std::size_t i = 0; i < old.size(); ++i) {
        // m = 0.1 g, v = 0.05 g^2, both unbiased: g / |g|.
        const double g = p.gradient.data<float>()[i];
        const double wanted = old[i] * (1 - lr * decay) - lr * (g > 0 ? 1.0 : -1.0);
        ASSERT_NEAR(p.value.data<float>()[i], wanted, 1e-7 * (2 + std::fabs(wanted)))
            << p.info.name;
      }
    } else if (p.info.group == ParameterGroup::muon) {
      for (const RowRange& rows : p.info.matrices) {
        test::Dense x = rows_of(p.gradient, rows);  // momentum only scales it
        const double norm = test::frobenius(x);
        for (double& v : x.v) v /= norm;
        const test::Dense polar = test::newton_schulz_f64(x, kHybridSchedule);
        const double factor = 0.18 * std::sqrt(static_cast<double>(std::max(x.rows, x.cols)));
        const auto first = static_cast<std::size_t>(rows.begin * x.cols);
        for (std::size_t i = 0; i < x.v.size(); ++i) {
          const double wanted = old[first + i] * (1 - lr * decay) - lr * factor * polar.v[i];
          // Square matrices have small singular values, whose directions carry f32's rounding.
          ASSERT_NEAR(p.value.data<float>()[first + i], wanted, 1e-5)
              << p.info.name << " " << rows.begin;
        }
      }
    } else if (!old.empty()) {
      EXPECT_EQ(copy(p.value), old) << p.info.name << " is frozen";
    }
  }
}

TEST(Optimizer, StatsAreTheRmsOfWhatWasSubtracted) {
  Training run;
  const StepStats stats = run.step(1, 2e-3);
  EXPECT_NEAR(stats.muon.rms(), 0.18 * 2e-3, 0.01 * 0.18 * 2e-3);
  EXPECT_NEAR(stats.adamw.rms(), 2e-3, 1e-6);  // a first step is a step of signs
  std::int64_t muon = 0, adamw = 0;
  for (const Parameter& p : run.store.parameters()) {
    if (p.info.group == ParameterGroup::muon) muon += p.value.numel();
    if (p.info.group == ParameterGroup::adamw) adamw += p.value.numel();
  }
  EXPECT_EQ(stats.muon.n_elements, muon);
  EXPECT_EQ(stats.adamw.n_elements, adamw);
  EXPECT_GT(stats.newton_schulz_seconds, 0.0);
  EXPECT_LE(stats.newton_schulz_seconds, stats.seconds);
}

TEST(Optimizer, BitsDoNotDependOnThreads) {
  Training one(1);
  for (unsigned s = 0; s < 3; ++s) (void)one.step(s);
  for (const int n_threads : {2, 3}) {
    Training other(n_threads);
    for (unsigned s = 0; s < 3; ++s) (void)other.step(s);
    expect_same_weights(one.store, other.store);
  }
}

TEST(Optimizer, ResumesToTheBit) {
  Training whole;
  for (unsigned s = 0; s < 5; ++s) (void)whole.step(s);
  Training first, second;
  for (unsigned s = 0; s < 3; ++s) (void)first.step(s);
  const std::vector<NamedTensor> from = first.optimizer.state();
  const std::vector<NamedTensor> to = second.optimizer.state();
  ASSERT_EQ(from.size(), to.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    ASSERT_EQ(from[i].name, to[i].name);
    std::memcpy(to[i].tensor.bytes(), from[i].tensor.bytes(), from[i].tensor.nbytes());
  }
  for (const Parameter& p : first.store.parameters()) {
    std::memcpy(second.store.at(p.info.id).value.bytes(), p.value.bytes(), p.value.nbytes());
  }
  for (unsigned s = 3; s < 5; ++s) (void)second.step(s);
  expect_same_weights(whole.store, second.store);
}

TEST(Optimizer, StateNamesLogicalMatrices) {
  const Training run;
  std::vector<std::string> names;
  for (const NamedTensor& t : run.optimizer.state()) names.push_back(t.name);
  EXPECT_THAT(
      names, ::testing::IsSupersetOf({"muon.momentum.layers.0.attn.wq_a.weight",
                                      "muon.momentum.layers.1.attn.compressor.wkv.weight:16-32",
                                      "muon.momentum.layers.2.hc_ffn_fn:8-24",
                                      "muon.momentum.layers.1.attn.wo_a.weight:8-16", "adamw.steps",
                                      "adamw.mean.embed.weight", "adamw.variance.norm.weight"}));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << "names repeat";
}

TEST(Optimizer, RanksTogetherDoWhatOneDoes) {
  Training whole;
  for (unsigned s = 0; s < 2; ++s) (void)whole.step(s);
  const ZeroPartition partition = partition_matrices(whole.store.matrices(), 3);
  for (int rank = 0; rank < 3; ++rank) {
    const std::vector<std::uint8_t> owned = partition.owned_by(rank);
    Training part(2, {}, Trained::all, owned);
    for (unsigned s = 0; s < 2; ++s) (void)part.step(s);
    Training untouched;
    for (std::size_t i = 0; i < owned.size(); ++i) {
      const LogicalMatrix& m = whole.store.matrices()[i];
      const auto bytes = [&](const ParameterStore& store) {
        return store.at(m.parameter).value.slice(m.rows.begin, m.rows.end);
      };
      const Tensor found = bytes(part.store);
      const Tensor wanted = bytes(owned[i] != 0 ? whole.store : untouched.store);
      EXPECT_EQ(std::memcmp(found.bytes(), wanted.bytes(), wanted.nbytes()), 0) << i;
    }
  }
}

TEST(Optimizer, ClipsByTheGlobalNorm) {
  Training run;
  random_gradients(run.store, 1);
  const GradientReport report = run.optimizer.measure(run.t.ctx);
  double sum = 0;
  for (const Parameter& p : run.store.parameters()) {
    if (!p.gradient) continue;
    for (std::int64_t i = 0; i < p.gradient.numel(); ++i) {
      const double g = p.gradient.data<float>()[i];
      sum += g * g;
    }
  }
  EXPECT_NEAR(report.norm(), std::sqrt(sum), 1e-9);
  EXPECT_FALSE(report.non_finite);
  EXPECT_NEAR(run.optimizer.step(run.t.ctx, 0.0, 4.0).gradient_scale, 0.25, 1e-12);
  EXPECT_EQ(run.optimizer.step(run.t.ctx, 0.0, 0.999).gradient_scale, 1.0);
  Training unclipped(2, {.muon = {}, .adamw = {}, .clip_norm = 0.0});
  EXPECT_EQ(unclipped.optimizer.step(unclipped.t.ctx, 0.0, 1e9).gradient_scale, 1.0);
}

TEST(Optimizer, NamesTheNonFiniteGradient) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Training run;
    random_gradients(run.store, 1);
    run.store.at("layers.2.attn.wkv.weight").gradient.data<float>()[5] = bad;
    run.store.at("head.weight").gradient.data<float>()[0] = bad;  // later in the file
    const GradientReport report = run.optimizer.measure(run.t.ctx);
    ASSERT_TRUE(report.non_finite);
    EXPECT_EQ(report.non_finite->name, "layers.2.attn.wkv.weight");
    EXPECT_EQ(report.non_finite->index, 5);
    EXPECT_FALSE(std::isfinite(report.non_finite->value));
  }
}

TEST(Optimizer, IndexerWarmupMovesTheIndexerAlone) {
  Training run(2, {}, Trained::indexer_only);
  const Training untouched;
  (void)run.step(1);
  for (const Parameter& p : run.store.parameters()) {
    const Tensor& before = untouched.store.at(p.info.id).value;
    const bool same = std::memcmp(p.value.bytes(), before.bytes(), before.nbytes()) == 0;
    EXPECT_EQ(same, !p.info.of_indexer) << p.info.name;
  }
}

TEST(Optimizer, RefusesOptionsThatMakeNoSense) {
  const auto message = [](OptimizerOptions options) -> std::string {
    const ParameterStore store(test::small_config());
    try {
      const Optimizer optimizer(store, std::move(options));
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::invalid_argument);
      return e.what();
    }
    return "no error";
  };
  OptimizerOptions o;
  o.muon.momentum = 1.0;
  EXPECT_THAT(message(o), HasSubstr("muon.momentum: 1"));
  o = {}, o.adamw.eps = 0.0;
  EXPECT_THAT(message(o), HasSubstr("adamw.eps: 0"));
  o = {}, o.muon.schedule.clear();
  EXPECT_THAT(message(o), HasSubstr("muon.ns_schedule"));
  o = {}, o.clip_norm = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message(o), HasSubstr("clip_norm: nan"));
  EXPECT_EQ(message({}), "no error");
}

// Least squares on one matrix: whatever else is right, a step must go downhill.
TEST(Optimizer, GoesDownhill) {
  Training run;
  const Tensor& w = run.store.at("layers.0.attn.wq_a.weight").value;
  const Tensor& g = run.store.at("layers.0.attn.wq_a.weight").gradient;
  std::mt19937 rng(4);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> target(static_cast<std::size_t>(w.numel()));
  for (float& x : target) x = normal(rng);
  double first = 0, last = 0;
  for (int step = 0; step < 100; ++step) {
    double loss = 0;
    for (std::int64_t i = 0; i < w.numel(); ++i) {
      const float d = w.data<float>()[i] - target[static_cast<std::size_t>(i)];
      g.data<float>()[i] = 2 * d, loss += static_cast<double>(d) * d;
    }
    if (step == 0) first = loss;
    last = loss;
    (void)run.optimizer.step(run.t.ctx, 3e-2 * (1.0 - step / 100.0),
                             run.optimizer.measure(run.t.ctx).norm());
  }
  EXPECT_LT(last, 0.02 * first);
}

}  // namespace
}  // namespace hadal::train
