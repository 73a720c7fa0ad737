// Core attention: backward against differences in f64; the same bits on any number of threads; a
// tape that changes nothing in forward.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "ops/kv_rows.h"
#include "ops/sparse_attention.h"
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
  std::int64_t n_heads, width, window, ratio, topk;  // ratio 0: window only; topk 0: all visible
};

// A step over whole sequences, with lists that leave entries out and end early.
struct Problem {
  Case c;
  Tensor q, kv, entries, sinks, selected;
  float scale = 0.4f;

  explicit Problem(const Case& problem) : c(problem) {
    std::int64_t n_tokens = 0, n_entries = 0;
    for (const std::int64_t n : c.lengths) {
      n_tokens += n;
      n_entries += c.ratio == 0 ? 0 : n / c.ratio;
    }
    q = random_f32({n_tokens, c.n_heads, c.width}, 1, 0.7f);
    kv = random_f32({n_tokens, c.width}, 2);
    entries = random_f32({n_entries, c.width}, 3);
    sinks = random_f32({c.n_heads}, 4);
    if (c.topk == 0) return;
    selected = Tensor::empty({n_tokens, c.topk}, DType::i32);
    Rng rng(5);
    std::int64_t t = 0;
    for (const std::int64_t n : c.lengths) {
      for (std::int64_t i = 0; i < n; ++i, ++t) {
        auto* list = selected.data<std::int32_t>() + t * c.topk;
        std::fill_n(list, c.topk, -1);
        const std::int64_t seen = visible(i);
        if (seen <= c.topk) {
          for (std::int64_t k = 0; k < seen; ++k) list[k] = static_cast<std::int32_t>(k);
          continue;
        }
        // Ascending, at random, every seventh list one short.
        const std::int64_t wanted = t % 7 == 3 ? c.topk - 1 : c.topk;
        std::int64_t kept = 0;
        for (std::int64_t e = 0; e < seen && kept < wanted; ++e) {
          const bool must = seen - e <= wanted - kept;
          if (must || rng.next_u32() % static_cast<std::uint32_t>(seen) <
                          static_cast<std::uint32_t>(wanted)) {
            list[kept++] = static_cast<std::int32_t>(e);
          }
        }
      }
    }
  }

  [[nodiscard]] std::int64_t visible(std::int64_t position) const {
    return c.ratio == 0 ? 0 : (position + 1) / c.ratio;
  }

  // in: q, kv, entries, sinks.
  Tensor run(ExecContext& ctx, const TensorList& in, Tensor* log_sum_exp = nullptr) const {
    const KvRowFormat format{
        .kind = ctx.numerics() == Numerics::fp32 ? KvRowKind::f32 : KvRowKind::fp8_mixed,
        .width = c.width,
        .rope = ctx.numerics() == Numerics::fp32 ? 0 : 8};
    const ops::StepRows rows = ops::store_step_rows(ctx, in[1], format);
    // One page a sequence, kept by the caller for backward.
    std::vector<AttentionSequence> sequences;
    std::int64_t t = 0, e = 0;
    stored.clear();
    for (const std::int64_t n : c.lengths) {
      AttentionSequence s{.begin = t, .end = t + n};
      const std::int64_t count = c.ratio == 0 ? 0 : n / c.ratio;
      if (count > 0) {
        stored.push_back(std::make_unique<ops::StepRows>(
            ops::store_step_rows(ctx, in[2].slice(e, e + count), format)));
        s.entries = stored.back()->view();
      }
      s.added = {.row = e, .count = count, .first = 0};
      sequences.push_back(s);
      t += n, e += count;
    }
    return ops::sparse_attention(ctx, in[0], rows, in[3], selected,
                                 {.window = c.window, .ratio = c.ratio, .softmax_scale = scale},
                                 sequences, {.entries = in[2], .log_sum_exp = log_sum_exp});
  }
  mutable std::vector<std::unique_ptr<ops::StepRows>> stored;

  [[nodiscard]] TensorList inputs() const { return {q, kv, entries, sinks}; }

  // The obvious loops. Returns o, or with `lse` the log-sum-exp.
  [[nodiscard]] Values reference(const ValuesList& in, bool lse = false) const {
    const auto width = static_cast<std::size_t>(c.width);
    const auto heads = static_cast<std::size_t>(c.n_heads);
    Values out;
    std::size_t t0 = 0, e0 = 0;
    for (const std::int64_t n : c.lengths) {
      for (std::int64_t i = 0; i < n; ++i) {
        const std::size_t t = t0 + static_cast<std::size_t>(i);
        std::vector<const double*> keys;
        for (std::int64_t j = std::max<std::int64_t>(0, i - c.window + 1); j <= i; ++j) {
          keys.push_back(in[1].data() + (t0 + static_cast<std::size_t>(j)) * width);
        }
        for (std::int64_t e = 0; e < visible(i); ++e) {
          if (selected) {
            const auto* list =
                selected.data<std::int32_t>() + static_cast<std::int64_t>(t) * c.topk;
            if (std::find(list, list + c.topk, e) == list + c.topk) continue;
          }
          keys.push_back(in[2].data() + (e0 + static_cast<std::size_t>(e)) * width);
        }
        for (std::size_t h = 0; h < heads; ++h) {
          const double* query = in[0].data() + (t * heads + h) * width;
          double sum = std::exp(in[3][h]);
          Values o(width);
          for (const double* k : keys) {
            double z = 0;
            for (std::size_t x = 0; x < width; ++x) z += query[x] * k[x];
            const double p = std::exp(z * static_cast<double>(scale));
            sum += p;
            for (std::size_t x = 0; x < width; ++x) o[x] += p * k[x];
          }
          if (lse) {
            out.push_back(std::log(sum));
            continue;
          }
          for (const double v : o) out.push_back(v / sum);
        }
      }
      t0 += static_cast<std::size_t>(n);
      e0 += static_cast<std::size_t>(c.ratio == 0 ? 0 : n / c.ratio);
    }
    return out;
  }
};

class AttentionGradient : public testing::TestWithParam<Case> {};

TEST_P(AttentionGradient, EqualsDifferences) {
  const Problem problem(GetParam());
  test::expect_gradients(
      problem.inputs(),
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {problem.run(ctx, in)}; },
      [&](const ValuesList& in) -> ValuesList { return {problem.reference(in)}; });
}

TEST_P(AttentionGradient, LogSumExpIsComplete) {
  const Problem problem(GetParam());
  TestContext tc(Numerics::fp32);
  Tensor lse;
  static_cast<void>(problem.run(tc.ctx, problem.inputs(), &lse));
  ValuesList at;
  for (const Tensor& x : problem.inputs()) at.push_back(test::values_of(x));
  const Values wanted = problem.reference(at, true);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(lse.data<float>()[i], wanted[i], 3e-6 * std::max(1.0, std::abs(wanted[i])));
  }
}

TEST_P(AttentionGradient, ThreadsDoNotMatter) {
  const Problem problem(GetParam());
  std::vector<TensorList> results;
  for (const int threads : {1, 3}) {
    TestContext tc(Numerics::fp32, threads);
    results.push_back(test::tape_gradients(
        tc, problem.inputs(), [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          return {problem.run(ctx, in)};
        }));
  }
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
}

TEST_P(AttentionGradient, ATapeChangesNoBitAndReplayRepeatsThem) {
  const Problem problem(GetParam());
  for (const Numerics numerics : {Numerics::fp32, Numerics::official}) {
    if (numerics == Numerics::official && problem.c.width % 8 != 0) continue;
    TestContext tc(numerics);
    TensorList x = problem.inputs();
    for (std::size_t i = 0; i < 3; ++i) x[i] = test::to_dtype(x[i], tc.ctx.activation_dtype());
    const Tensor plain = problem.run(tc.ctx, x);
    Tape tape(tc.allocator, 4);
    TensorList gradients;
    const TensorList in = test::as_parameters(tape, x, gradients);
    tc.ctx.set_tape(&tape);
    Tensor taped = problem.run(tc.ctx, in);
    EXPECT_TRUE(same_bits(plain, taped));
    // Its result is dropped and made again for whoever asks.
    tape.recompute(taped);
    const Saved saved = tape.save(taped);
    taped = {};
    Tensor again;
    tape.record({.name = "look", .inputs = {}, .outputs = {}, .backward = [&](Backward& b) {
                   again = b.get(saved);
                 }});
    tape.backward(tc.ctx);
    EXPECT_TRUE(same_bits(plain, again));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionGradient,
    testing::Values(Case{"one_token", {1}, 1, 5, 4, 0, 0},
                    Case{"window_only_ragged", {1, 19, 2, 6}, 2, 6, 5, 0, 0},
                    Case{"window_longer_than_the_text", {7, 3}, 3, 4, 64, 2, 0},
                    Case{"all_visible", {21, 1, 8}, 2, 8, 4, 4, 0},
                    Case{"many_sequences", {3, 4, 5, 1, 9, 2, 6, 8}, 2, 4, 3, 2, 0},
                    Case{"lists", {40, 5, 1}, 2, 8, 3, 2, 3},
                    Case{"lists_that_hold_all", {9, 4}, 2, 8, 3, 2, 8}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

// Longer than a block of queries and than a tile of entries, against a plain backward in f64, which
// needs one pass where differences need thousands.
TEST(AttentionGradientLarge, BlocksAndTilesMeet) {
  for (const std::int64_t topk : {0, 6, 200}) {
    const Problem problem({"", {600, 90}, 2, 8, 40, 1, topk});
    TestContext tc(Numerics::fp32, 2);
    const TensorList found = test::tape_gradients(
        tc, problem.inputs(), [&](ExecContext& ctx, const TensorList& in) -> TensorList {
          return {problem.run(ctx, in)};
        });
    const Values q = test::values_of(problem.q), kv = test::values_of(problem.kv);
    const Values entries = test::values_of(problem.entries), sinks = test::values_of(problem.sinks);
    const Values probe = test::values_of(random_f32(problem.q.shape(), 1000));
    Values dq(q.size()), dkv(kv.size()), dentries(entries.size()), dsinks(sinks.size());
    const std::size_t width = 8, heads = 2;
    std::size_t t0 = 0, e0 = 0;
    for (const std::int64_t n : problem.c.lengths) {
      for (std::int64_t i = 0; i < n; ++i) {
        const std::size_t t = t0 + static_cast<std::size_t>(i);
        std::vector<std::pair<const double*, double*>> keys;
        for (std::int64_t j = std::max<std::int64_t>(0, i - 39); j <= i; ++j) {
          const std::size_t at = (t0 + static_cast<std::size_t>(j)) * width;
          keys.emplace_back(kv.data() + at, dkv.data() + at);
        }
        for (std::int64_t e = 0; e < problem.visible(i); ++e) {
          if (topk > 0) {
            const auto* list =
                problem.selected.data<std::int32_t>() + static_cast<std::int64_t>(t) * topk;
            if (!std::binary_search(list, std::find(list, list + topk, -1), e)) continue;
          }
          const std::size_t at = (e0 + static_cast<std::size_t>(e)) * width;
          keys.emplace_back(entries.data() + at, dentries.data() + at);
        }
        for (std::size_t h = 0; h < heads; ++h) {
          const std::size_t row = (t * heads + h) * width;
          Values p, d;
          double sum = std::exp(sinks[h]), delta = 0;
          for (const auto& [k, dk] : keys) {
            double z = 0, dot = 0;
            for (std::size_t x = 0; x < width; ++x) {
              z += q[row + x] * k[x], dot += probe[row + x] * k[x];
            }
            p.push_back(std::exp(z * static_cast<double>(problem.scale)));
            d.push_back(dot);
            sum += p.back();
          }
          for (std::size_t j = 0; j < p.size(); ++j) p[j] /= sum, delta += p[j] * d[j];
          for (std::size_t j = 0; j < p.size(); ++j) {
            const double dz = static_cast<double>(problem.scale) * p[j] * (d[j] - delta);
            for (std::size_t x = 0; x < width; ++x) {
              dq[row + x] += dz * keys[j].first[x];
              keys[j].second[x] += dz * q[row + x] + p[j] * probe[row + x];
            }
          }
          dsinks[h] -= std::exp(sinks[h]) / sum * delta;
        }
      }
      t0 += static_cast<std::size_t>(n);
      e0 += static_cast<std::size_t>(n / problem.c.ratio);
    }
    EXPECT_LT(test::relative_l2(found[0], dq), 2e-5) << topk;
    EXPECT_LT(test::relative_l2(found[1], dkv), 2e-5) << topk;
    EXPECT_LT(test::relative_l2(found[2], dentries), 2e-5) << topk;
    EXPECT_LT(test::relative_l2(found[3], dsinks), 2e-5) << topk;
  }
}

// bf16 queries, FP8 rows: straight through, that is the gradient at the rounded values. What is
// left are the roundings of probabilities and of the result, 2^-9 each.
TEST(AttentionGradientOfficial, IsThatOfTheStoredValues) {
  const Problem problem({"", {21, 6}, 2, 16, 4, 4, 0});
  TestContext tc(Numerics::official);
  TensorList x;
  ValuesList at;
  for (const Tensor& t : {problem.q, problem.kv, problem.entries}) {
    x.push_back(test::to_dtype(t, DType::bf16));
    at.push_back(test::values_of(x.back()));
  }
  x.push_back(problem.sinks);
  at.push_back(test::values_of(problem.sinks));
  const TensorList found = test::tape_gradients(
      tc, x,
      [&](ExecContext& ctx, const TensorList& in) -> TensorList { return {problem.run(ctx, in)}; });
  // E4M3 of the first 8 columns with the scale of the row's block of 64.
  for (std::size_t i : {1, 2}) {
    for (std::size_t r = 0; r < at[i].size(); r += 16) {
      float amax = 0;
      for (std::size_t k = 0; k < 8; ++k) {
        amax = std::max(amax, std::abs(static_cast<float>(at[i][r + k])));
      }
      const int e = e4m3_scale_exponent(amax);
      for (std::size_t k = 0; k < 8; ++k) {
        const auto scaled = static_cast<float>(std::ldexp(at[i][r + k], -e));
        at[i][r + k] = std::ldexp(static_cast<double>(to_float(to_e4m3(scaled))), e);
      }
    }
  }
  const ValuesList wanted = test::central_differences(
      at, [&](const ValuesList& in) -> ValuesList { return {problem.reference(in)}; });
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_LT(test::relative_l2(found[i], wanted[i]), 5e-3) << "input " << i;
  }
}

// Rows from before the step are read and get nothing.
TEST(AttentionGradientHistory, IsConstant) {
  const std::int64_t n_old = 9, n_new = 6, width = 4, window = 5;
  const KvRowFormat format{.kind = KvRowKind::f32, .width = width};
  TestContext tc(Numerics::fp32);
  const Tensor old_kv = random_f32({n_old, width}, 7), old_entries = random_f32({4, width}, 8);
  const Tensor sinks = random_f32({2}, 9);
  ops::StepRows ring = ops::store_step_rows(tc.ctx, old_kv, format);
  std::vector<std::unique_ptr<ops::StepRows>> kept;
  const auto all_rows = [&](const ValuesList& in, std::size_t old_n, const Tensor& old,
                            std::size_t which) {
    Values v = test::values_of(old);
    v.resize(old_n * static_cast<std::size_t>(width));
    v.insert(v.end(), in[which].begin(), in[which].end());
    return v;
  };
  test::expect_gradients(
      {random_f32({n_new, 2, width}, 1), random_f32({n_new, width}, 2), random_f32({3, width}, 3)},
      [&](ExecContext& ctx, const TensorList& in) -> TensorList {
        Tensor joined = Tensor::empty({7, width}, DType::f32);
        std::copy_n(old_entries.data<float>(), 4 * width, joined.data<float>());
        std::copy_n(in[2].data<float>(), 3 * width, joined.data<float>() + 4 * width);
        kept.push_back(std::make_unique<ops::StepRows>(ops::store_step_rows(ctx, joined, format)));
        const ops::StepRows rows = ops::store_step_rows(ctx, in[1], format);
        const AttentionSequence s{.begin = 0,
                                  .end = n_new,
                                  .start = n_old,
                                  .window = ring.view(),
                                  .ring_rows = n_old,
                                  .entries = kept.back()->view(),
                                  .added = {.row = 0, .count = 3, .first = 4}};
        return {ops::sparse_attention(ctx, in[0], rows, sinks, {},
                                      {.window = window, .ratio = 2, .softmax_scale = 0.5f},
                                      {&s, 1}, {.entries = in[2]})};
      },
      [&](const ValuesList& in) -> ValuesList {
        const Values kv = all_rows(in, 9, old_kv, 1), entries = all_rows(in, 4, old_entries, 2);
        Values out;
        for (std::size_t i = 0; i < 6; ++i) {
          for (std::size_t h = 0; h < 2; ++h) {
            double sum = std::exp(static_cast<double>(sinks.data<float>()[h]));
            Values o(4);
            const auto add = [&](const double* k) {
              double z = 0;
              for (std::size_t x = 0; x < 4; ++x) z += 0.5 * in[0][(i * 2 + h) * 4 + x] * k[x];
              sum += std::exp(z);
              for (std::size_t x = 0; x < 4; ++x) o[x] += std::exp(z) * k[x];
            };
            const std::size_t position = 9 + i;
            for (std::size_t j = position - 4; j <= position; ++j) add(kv.data() + j * 4);
            for (std::size_t e = 0; e < (position + 1) / 2; ++e) add(entries.data() + e * 4);
            for (const double v : o) out.push_back(v / sum);
          }
        }
        return {out};
      });
}

}  // namespace
}  // namespace hadal
