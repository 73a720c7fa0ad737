// The indexer's rotation, its rounding and its loss: backward against differences in f64.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/cpu/kv_rows.h"
#include "ops/index_loss.h"
#include "ops/indexer.h"
#include "ops/kv_rows.h"
#include "support/gradient.h"

namespace hadal {
namespace {

using test::random_f32;
using test::same_bits;
using test::TestContext;
using test::Values;
using test::ValuesList;

TEST(IndexerGradient, Hadamard) {
  test::expect_gradients(
      {random_f32({3, 2, 32}, 1)},
      [](ExecContext& ctx, const TensorList& in) -> TensorList {
        return {ops::hadamard(ctx, in[0])};
      },
      [](const ValuesList& in) -> ValuesList {
        Values y(in[0].size());
        for (std::size_t r = 0; r < y.size(); r += 32) {
          for (std::size_t i = 0; i < 32; ++i) {
            for (std::size_t j = 0; j < 32; ++j) {
              const double sign = __builtin_popcountll(i & j) % 2 == 0 ? 1 : -1;
              y[r + i] += sign * in[0][r + j] / std::sqrt(32.0);
            }
          }
        }
        return {y};
      });
}

// Straight through, into memory of its own, and the values that a cache of FP4 keys holds.
TEST(IndexerGradient, FakeQuantizePassesGradientsThrough) {
  TestContext tc(Numerics::official);
  const Tensor x = test::to_dtype(random_f32({5, 64}, 1), DType::bf16);
  const Tensor before = test::to_dtype(x, DType::bf16);
  Tensor rounded;
  const TensorList g =
      test::tape_gradients(tc, {x}, [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        rounded = ops::fake_quantize_fp4(ctx, in[0]);
        return {rounded};
      });
  EXPECT_TRUE(same_bits(x, before));
  EXPECT_TRUE(same_bits(g[0], random_f32({5, 64}, 1000)));
  const ops::StepRows rows = ops::store_step_rows(tc.ctx, x, {.kind = KvRowKind::fp4, .width = 64});
  for (std::int64_t r = 0; r < 5; ++r) {
    bf16 stored[64];
    kernels::cpu::decode_row(rows.view(), r, stored);
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(to_float(stored[i]), to_float(rounded.data<bf16>()[r * 64 + i]));
    }
  }
}

struct Case {
  const char* name;
  std::vector<std::int64_t> lengths;
  std::int64_t topk;  // 0: all visible
  std::int64_t n_heads = 3, index_heads = 2, ratio = 2;
};

constexpr std::int64_t kWidth = 6, kIndexWidth = 4;
constexpr float kScale = 0.4f;

struct Problem {
  Case c;
  std::int64_t n_tokens = 0, n_entries = 0;
  Tensor index_queries, index_weights, index_keys, queries, entries, selected;
  // Over window and sink: made up, a constant beside the entries.
  Values rest;

  explicit Problem(const Case& problem) : c(problem) {
    for (const std::int64_t n : c.lengths) n_tokens += n, n_entries += n / c.ratio;
    index_queries = random_f32({n_tokens, c.index_heads, kIndexWidth}, 1);
    index_weights = random_f32({n_tokens, c.index_heads}, 2);
    index_keys = random_f32({n_entries, kIndexWidth}, 3);
    queries = random_f32({n_tokens, c.n_heads, kWidth}, 4);
    entries = random_f32({n_entries, kWidth}, 5);
    for (const double v : test::values_of(random_f32({n_tokens * c.n_heads}, 6))) {
      rest.push_back(std::exp(v));
    }
    if (c.topk == 0) return;
    selected = Tensor::empty({n_tokens, c.topk}, DType::i32);
    std::int64_t t = 0;
    for (const std::int64_t n : c.lengths) {
      for (std::int64_t i = 0; i < n; ++i, ++t) {
        auto* list = selected.data<std::int32_t>() + t * c.topk;
        std::fill_n(list, c.topk, -1);
        const std::int64_t seen = (i + 1) / c.ratio;
        std::int64_t kept = 0;
        for (std::int64_t e = 0; e < seen && kept < c.topk; ++e) {
          if (seen - e <= c.topk - kept || (e * 7 + t * 3) % 5 < 2) {
            list[kept++] = static_cast<std::int32_t>(e);
          }
        }
      }
    }
  }

  [[nodiscard]] TensorList inputs() const { return {index_queries, index_weights, index_keys}; }
  [[nodiscard]] ValuesList values() const {
    return {test::values_of(index_queries), test::values_of(index_weights),
            test::values_of(index_keys)};
  }

  // Calls fn(t, i, first entry) for every query.
  template <class Fn>
  void each_query(Fn&& fn) const {
    std::int64_t t = 0, e = 0;
    for (const std::int64_t n : c.lengths) {
      for (std::int64_t i = 0; i < n; ++i, ++t) fn(t, i, e);
      e += n / c.ratio;
    }
  }
  [[nodiscard]] bool listed(std::int64_t t, std::int64_t entry) const {
    if (!selected) return true;
    const auto* list = selected.data<std::int32_t>() + t * c.topk;
    return std::find(list, list + c.topk, entry) != list + c.topk;
  }
  // exp(z) of a query's head and an entry.
  [[nodiscard]] double attention(std::int64_t t, std::int64_t h, std::int64_t row) const {
    double z = 0;
    for (std::int64_t x = 0; x < kWidth; ++x) {
      z += static_cast<double>(queries.data<float>()[(t * c.n_heads + h) * kWidth + x]) *
           static_cast<double>(entries.data<float>()[row * kWidth + x]);
    }
    return std::exp(z * static_cast<double>(kScale));
  }
  [[nodiscard]] double score(const ValuesList& in, std::int64_t t, std::int64_t row) const {
    double sum = 0;
    for (std::int64_t h = 0; h < c.index_heads; ++h) {
      double a = 0;
      for (std::int64_t x = 0; x < kIndexWidth; ++x) {
        a += in[0][static_cast<std::size_t>((t * c.index_heads + h) * kIndexWidth + x)] *
             in[2][static_cast<std::size_t>(row * kIndexWidth + x)];
      }
      sum += in[1][static_cast<std::size_t>(t * c.index_heads + h)] * std::max(0.0, a);
    }
    return sum;
  }
  // Of every head.
  [[nodiscard]] Values denominators(std::int64_t t, std::int64_t i, std::int64_t first,
                                    bool dense) const {
    Values sums;
    for (std::int64_t h = 0; h < c.n_heads; ++h) {
      sums.push_back(rest[static_cast<std::size_t>(t * c.n_heads + h)]);
      for (std::int64_t e = 0; e < (i + 1) / c.ratio; ++e) {
        if (dense || listed(t, e)) sums.back() += attention(t, h, first + e);
      }
    }
    return sums;
  }
  // A of one entry.
  [[nodiscard]] double mass(std::int64_t t, std::int64_t row, const Values& sums) const {
    double a = 0;
    for (std::int64_t h = 0; h < c.n_heads; ++h) {
      a += attention(t, h, row) / sums[static_cast<std::size_t>(h)];
    }
    return a;
  }

  [[nodiscard]] double reference(const ValuesList& in) const {
    double loss = 0;
    each_query([&](std::int64_t t, std::int64_t i, std::int64_t first) {
      Values p, score_of;
      const Values sums = denominators(t, i, first, false);
      for (std::int64_t e = 0; e < (i + 1) / c.ratio; ++e) {
        if (!listed(t, e)) continue;
        p.push_back(mass(t, first + e, sums)), score_of.push_back(score(in, t, first + e));
      }
      const double total = std::accumulate(p.begin(), p.end(), 0.0);
      double sum = 0;
      for (const double s : score_of) sum += std::exp(s);
      for (std::size_t k = 0; k < p.size(); ++k) {
        loss += p[k] / total * (std::log(p[k] / total) - (score_of[k] - std::log(sum)));
      }
    });
    return loss;
  }

  // Means over the rows that leave some out.
  struct Recall {
    double caught = 0, best = 0;
  };
  [[nodiscard]] Recall reference_recall(std::int64_t topk) const {
    Recall sum;
    int n = 0;
    each_query([&](std::int64_t t, std::int64_t i, std::int64_t first) {
      const std::int64_t seen = (i + 1) / c.ratio;
      if (seen <= topk) return;
      std::vector<std::pair<double, std::int64_t>> best;
      for (std::int64_t e = 0; e < seen; ++e) best.emplace_back(-score(values(), t, first + e), e);
      std::sort(best.begin(), best.end());
      best.resize(static_cast<std::size_t>(topk));
      double caught = 0, total = 0;
      std::vector<double> masses;
      const Values sums = denominators(t, i, first, true);
      for (std::int64_t e = 0; e < seen; ++e) {
        const double a = mass(t, first + e, sums);
        total += a;
        masses.push_back(a);
        const bool kept = selected ? listed(t, e)
                                   : std::any_of(best.begin(), best.end(),
                                                 [&](const auto& b) { return b.second == e; });
        if (kept) caught += a;
      }
      std::sort(masses.begin(), masses.end(), std::greater<>());
      sum.caught += caught / total;
      sum.best += std::accumulate(masses.begin(), masses.begin() + topk, 0.0) / total;
      n += 1;
    });
    return n == 0 ? Recall{} : Recall{sum.caught / n, sum.best / n};
  }

  ops::IndexLoss run(ExecContext& ctx, const TensorList& in,
                     const ops::IndexLossOptions& options) const {
    const KvRowFormat format{.kind = KvRowKind::f32, .width = kWidth};
    std::vector<std::unique_ptr<ops::StepRows>> stored;
    ops::IndexedAttention a{.index_queries = in[0],
                            .index_weights = in[1],
                            .index_keys = in[2],
                            .queries = queries,
                            .log_sum_exp = Tensor::empty({n_tokens, c.n_heads}, DType::f32),
                            .selected = selected,
                            .options = {.window = 1, .ratio = c.ratio, .softmax_scale = kScale},
                            .sequences = {}};
    std::int64_t t = 0, e = 0;
    for (const std::int64_t n : c.lengths) {
      const std::int64_t count = n / c.ratio;
      AttentionSequence s{.begin = t, .end = t + n};
      s.added = {.row = e, .count = count, .first = 0};
      if (count > 0) {
        stored.push_back(std::make_unique<ops::StepRows>(
            ops::store_step_rows(ctx, entries.slice(e, e + count), format)));
        s.entries = stored.back()->view();
      }
      a.sequences.push_back(s);
      t += n, e += count;
    }
    each_query([&](std::int64_t q, std::int64_t i, std::int64_t first) {
      const Values sums = denominators(q, i, first, false);
      for (std::size_t h = 0; h < sums.size(); ++h) {
        a.log_sum_exp.data<float>()[q * c.n_heads + static_cast<std::int64_t>(h)] =
            static_cast<float>(std::log(sums[h]));
      }
    });
    return ops::index_loss(ctx, a, options);
  }

  // Gradients of scale * sum of the losses, and the loss.
  TensorList gradients(TestContext& tc, const ops::IndexLossOptions& options,
                       ops::IndexLoss* loss = nullptr) const {
    Tape tape(tc.allocator, 3);
    TensorList g;
    const TensorList in = test::as_parameters(tape, inputs(), g);
    tc.ctx.set_tape(&tape);
    const ops::IndexLoss result = run(tc.ctx, in, options);
    if (loss != nullptr) *loss = result;
    tape.backward(tc.ctx);
    tc.ctx.set_tape(nullptr);
    return g;
  }
};

class IndexLossGradient : public testing::TestWithParam<Case> {};

TEST_P(IndexLossGradient, LossRecallAndGradientsEqualTheReference) {
  const Problem problem(GetParam());
  TestContext tc(Numerics::fp32);
  const std::int64_t topk = problem.c.topk > 0 ? problem.c.topk : 3;
  const float scale = 0.25f;
  std::int64_t rows = 0;
  for (const std::int64_t n : problem.c.lengths) {
    rows += ops::rows_with_entries(n, problem.c.ratio);
  }
  for (const std::int64_t recall_topk : {std::int64_t{0}, topk}) {
    ops::IndexLoss loss;
    const TensorList found =
        problem.gradients(tc, {.scale = scale, .recall_topk = recall_topk}, &loss);
    EXPECT_EQ(loss.n_rows, rows);
    EXPECT_NEAR(loss.sum, problem.reference(problem.values()), 2e-5 * static_cast<double>(rows));
    ValuesList wanted = test::central_differences(
        problem.values(),
        [&](const ValuesList& in) -> ValuesList { return {{problem.reference(in)}}; });
    const double probe = random_f32({1}, 1000).data<float>()[0];
    for (std::size_t i = 0; i < 3; ++i) {
      for (double& v : wanted[i]) v *= static_cast<double>(scale) / probe;
      EXPECT_LT(test::relative_l2(found[i], wanted[i]), 2e-5) << i;
    }
    if (recall_topk == 0) {
      EXPECT_EQ(loss.n_recall_rows, 0);
    } else if (const auto recall = problem.reference_recall(topk); loss.n_recall_rows > 0) {
      const auto n = static_cast<double>(loss.n_recall_rows);
      EXPECT_NEAR(loss.recall_sum / n, recall.caught, 1e-5);
      EXPECT_NEAR(loss.best_recall_sum / n, recall.best, 1e-5);
      EXPECT_LE(loss.recall_sum, loss.best_recall_sum * (1 + 1e-6));
    } else {
      EXPECT_EQ(recall.caught, 0.0);
    }
  }
}

TEST_P(IndexLossGradient, ThreadsDoNotMatter) {
  const Problem problem(GetParam());
  std::vector<TensorList> results;
  std::vector<double> sums;
  for (const int threads : {1, 3}) {
    TestContext tc(Numerics::fp32, threads);
    ops::IndexLoss loss;
    results.push_back(problem.gradients(tc, {.scale = 1, .recall_topk = 2}, &loss));
    sums.push_back(loss.sum);
  }
  EXPECT_EQ(sums[0], sums[1]);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
}

INSTANTIATE_TEST_SUITE_P(Shapes, IndexLossGradient,
                         testing::Values(Case{"all_visible", {23, 1, 6}, 0},
                                         Case{"nothing_to_see", {1, 1}, 0},
                                         Case{"lists", {31, 4, 1, 9}, 3},
                                         Case{"lists_that_hold_all", {9, 5}, 6},
                                         Case{"many_sequences", {3, 4, 5, 1, 9, 2, 6, 8}, 2}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

// More entries than a tile: the student's dots are made twice. The same loss as over one tile's
// worth is the reference; gradients against differences along one direction.
TEST(IndexLossLarge, TilesMeet) {
  for (const std::int64_t topk : {0, 40}) {
    const Problem problem({"", {540}, topk, 2, 2, 1});
    TestContext tc(Numerics::fp32);
    ops::IndexLoss loss;
    const TensorList g = problem.gradients(tc, {.scale = 1, .recall_topk = 0}, &loss);
    EXPECT_NEAR(loss.sum, problem.reference(problem.values()), 1e-3);
    for (std::size_t i = 0; i < 3; ++i) {
      ValuesList up = problem.values(), down = up;
      const Values direction =
          test::values_of(random_f32({static_cast<std::int64_t>(up[i].size())}, 77 + i));
      double along = 0, norm = 0;
      for (std::size_t k = 0; k < direction.size(); ++k) {
        up[i][k] += 1e-6 * direction[k], down[i][k] -= 1e-6 * direction[k];
        const double v = g[i].data<float>()[k];
        along += v * direction[k], norm += v * v;
      }
      const double wanted = (problem.reference(up) - problem.reference(down)) / 2e-6;
      EXPECT_NEAR(along, wanted, 1e-4 * std::sqrt(norm)) << i << " of topk " << topk;
    }
  }
}

TEST(IndexLoss, AHistoryFromBeforeTheStepIsRefused) {
  TestContext tc(Numerics::fp32);
  const Problem problem({"", {8}, 0});
  ops::IndexedAttention a{.index_queries = problem.index_queries,
                          .index_weights = problem.index_weights,
                          .index_keys = problem.index_keys,
                          .queries = problem.queries,
                          .log_sum_exp = Tensor::zeros({8, 3}, DType::f32),
                          .selected = {},
                          .options = {.window = 1, .ratio = 2, .softmax_scale = 1},
                          .sequences = {{.begin = 0, .end = 8, .start = 4}}};
  EXPECT_THROW(static_cast<void>(ops::index_loss(tc.ctx, a, {})), Error);
}

// A head that puts everything on window and sink has no say in what the entries are worth.
TEST(IndexLoss, RowsWithoutAttentionAreSkipped) {
  TestContext tc(Numerics::fp32);
  Problem problem({"", {9}, 0});
  for (double& v : problem.rest) v = 1e60;
  ops::IndexLoss loss;
  const TensorList g = problem.gradients(tc, {}, &loss);
  EXPECT_EQ(loss.n_rows, 0);
  EXPECT_EQ(loss.sum, 0.0);
  for (const Tensor& x : g) {
    for (std::int64_t i = 0; i < x.numel(); ++i) EXPECT_EQ(x.data<float>()[i], 0.0f);
  }
}

}  // namespace
}  // namespace hadal
