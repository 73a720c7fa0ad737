// Core attention, compression and selection against plain loops.
#include "core/rng.h"
#include "ops/compress_kv.h"
#include "ops/indexer.h"
#include "ops/kv_rows.h"
#include "ops/sparse_attention.h"
#include "reference/reference.h"
#include "support/context.h"
#include "support/golden.h"

namespace hadal::test {
namespace {

Tensor random_rows(Rng& rng, Shape shape, float spread = 1.0f) {
  Tensor t = Tensor::empty(shape, DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = spread * rng.next_normal();
  return t;
}
std::vector<double> row_of(const Tensor& t, std::int64_t row, std::int64_t begin = 0,
                           std::int64_t end = -1) {
  const std::int64_t width = t.numel() / t.dim(0);
  const float* p = t.data<const float>() + row * width;
  return {p + begin, p + (end < 0 ? width : end)};
}

struct AttentionCase {
  std::int64_t n_tokens, n_heads, width, window, ratio, topk;  // topk 0: all visible
};

class SparseAttentionTest : public testing::TestWithParam<AttentionCase> {};

TEST_P(SparseAttentionTest, EqualsTheReference) {
  const AttentionCase& c = GetParam();
  TestContext t(Numerics::fp32);
  Rng rng(9);
  const KvRowFormat format{.kind = KvRowKind::f32, .width = c.width};
  const Tensor q = random_rows(rng, {c.n_tokens, c.n_heads, c.width});
  const Tensor kv = random_rows(rng, {c.n_tokens, c.width});
  const Tensor entries = random_rows(rng, {std::max<std::int64_t>(1, c.n_tokens), c.width});
  const Tensor sinks = random_rows(rng, {c.n_heads});
  const ops::StepRows own = ops::store_step_rows(t.ctx, kv, format);
  const ops::StepRows compressed = ops::store_step_rows(t.ctx, entries, format);
  const auto visible = [&](std::int64_t p) { return c.ratio == 0 ? 0 : (p + 1) / c.ratio; };
  Tensor selected;
  if (c.topk > 0) {  // every second entry, ascending
    selected = Tensor::empty({c.n_tokens, c.topk}, DType::i32);
    for (std::int64_t p = 0; p < c.n_tokens; ++p) {
      for (std::int64_t k = 0; k < c.topk; ++k) {
        const std::int64_t entry = visible(p) <= c.topk ? k : 2 * k;
        selected.data<std::int32_t>()[p * c.topk + k] =
            static_cast<std::int32_t>(entry < visible(p) ? entry : -1);
      }
    }
  }
  const AttentionSequence sequence{0, c.n_tokens, 0, own.view(), c.n_tokens, compressed.view()};
  const float scale = 0.3f;
  const Tensor o = ops::sparse_attention(
      t.ctx, q, own, sinks, selected,
      {.window = c.window, .ratio = c.ratio, .softmax_scale = scale}, {&sequence, 1});
  std::vector<float> want;
  for (std::int64_t p = 0; p < c.n_tokens; ++p) {
    reference::Matrix rows;
    for (std::int64_t j = std::max<std::int64_t>(0, p - c.window + 1); j <= p; ++j) {
      rows.push_back(row_of(kv, j));
    }
    for (std::int64_t s = 0; s < visible(p); ++s) {
      const bool listed = c.topk == 0 || visible(p) <= c.topk || (s % 2 == 0 && s / 2 < c.topk);
      if (listed) rows.push_back(row_of(entries, s));
    }
    for (std::int64_t h = 0; h < c.n_heads; ++h) {
      const auto y = reference::attend(row_of(q, p, h * c.width, (h + 1) * c.width), rows,
                                       static_cast<double>(sinks.data<const float>()[h]),
                                       static_cast<double>(scale));
      for (const double v : y) want.push_back(static_cast<float>(v));
    }
  }
  // exp to 2 ulp, sums of up to a hundred terms.
  EXPECT_LE(difference(values(o), want).relative_l2, 2e-6);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SparseAttentionTest,
    testing::Values(AttentionCase{1, 1, 32, 4, 0, 0}, AttentionCase{37, 3, 32, 8, 0, 0},
                    AttentionCase{50, 5, 48, 16, 4, 0}, AttentionCase{70, 17, 64, 16, 4, 6},
                    AttentionCase{41, 2, 512, 128, 16, 0}, AttentionCase{33, 64, 33, 5, 3, 2}));

TEST(SparseAttention, ALoudSinkSilencesAndNoSinkIsSoftmax) {
  TestContext t(Numerics::fp32);
  Rng rng(2);
  const KvRowFormat format{.kind = KvRowKind::f32, .width = 32};
  const Tensor q = random_rows(rng, {1, 1, 32}), kv = random_rows(rng, {1, 32});
  const ops::StepRows own = ops::store_step_rows(t.ctx, kv, format);
  const AttentionSequence sequence{0, 1, 0, own.view(), 1, {}};
  const auto run = [&](float sink) {
    Tensor sinks = Tensor::empty({1}, DType::f32);
    sinks.data<float>()[0] = sink;
    return values(ops::sparse_attention(t.ctx, q, own, sinks, {},
                                        {.window = 1, .ratio = 0, .softmax_scale = 1.0f},
                                        {&sequence, 1}));
  };
  for (const float v : run(80.0f)) EXPECT_NEAR(v, 0.0f, 1e-20);
  EXPECT_EQ(run(-INFINITY), values(kv));
}

TEST(CompressKv, EqualsTheReferenceWithAndWithoutOverlap) {
  for (const bool overlap : {true, false}) {
    TestContext t(Numerics::fp32);
    Rng rng(4);
    const std::int64_t ratio = overlap ? 4 : 7, width = 70, n = 41, q = overlap ? 2 : 1;
    const Tensor kv = random_rows(rng, {n, q * width});
    const Tensor gate = random_rows(rng, {n, q * width}, 2.0f);
    const Tensor bias = random_rows(rng, {ratio, q * width});
    Tensor tail_kv = Tensor::zeros({q * ratio, q * width}, DType::f32);
    Tensor tail_gate = Tensor::zeros({q * ratio, q * width}, DType::f32);
    const CompressSequence sequence{0, n, 0, 0, {tail_kv, tail_gate}};
    const Tensor got =
        ops::compress_kv(t.ctx, kv, to_dtype(gate, DType::f32), bias, overlap, {&sequence, 1});
    std::vector<float> want;
    for (std::int64_t s = 0; s < n / ratio; ++s) {
      reference::Matrix rows, gates;
      const auto add = [&](std::int64_t p, std::int64_t column) {
        rows.push_back(row_of(kv, p, column, column + width));
        gates.push_back(row_of(gate, p, column, column + width));
        const auto b = row_of(bias, p % ratio, column, column + width);
        for (std::size_t c = 0; c < b.size(); ++c) gates.back()[c] += b[c];
      };
      if (overlap && s > 0) {
        for (std::int64_t p = (s - 1) * ratio; p < s * ratio; ++p) add(p, 0);
      }
      for (std::int64_t p = s * ratio; p < (s + 1) * ratio; ++p) add(p, overlap ? width : 0);
      for (const double v : reference::pool(rows, gates)) want.push_back(static_cast<float>(v));
    }
    EXPECT_LE(difference(values(got), want).relative_l2, 1e-6) << "overlap " << overlap;
  }
}

// Equal scores everywhere: the lower entries win. One larger score is always among the kept.
TEST(IndexTopk, TiesGoToTheLowerEntry) {
  TestContext t(Numerics::official);
  const std::int64_t n = 40, topk = 3;
  const KvRowFormat format{.kind = KvRowKind::fp4, .width = 32};
  Tensor keys = Tensor::zeros({10, 32}, DType::bf16);
  for (std::int64_t s = 0; s < 10; ++s) {
    for (int c = 0; c < 32; ++c) keys.data<bf16>()[s * 32 + c] = to_bf16(s == 7 ? 2.0f : 1.0f);
  }
  const ops::StepRows rows = ops::store_step_rows(t.ctx, keys, format);
  Tensor q = Tensor::zeros({n, 2, 32}, DType::bf16), w = Tensor::zeros({n, 2}, DType::bf16);
  for (std::int64_t i = 0; i < q.numel(); ++i) q.data<bf16>()[i] = to_bf16(0.5f);
  for (std::int64_t i = 0; i < w.numel(); ++i) w.data<bf16>()[i] = to_bf16(1.0f);
  const IndexSequence sequence{0, n, 0, rows.view()};
  const Tensor selected = ops::index_topk(t.ctx, q, w, topk, 4, {&sequence, 1});
  const auto list = [&](std::int64_t token) {
    const auto* p = selected.data<const std::int32_t>() + token * topk;
    return std::vector<int>(p, p + topk);
  };
  EXPECT_EQ(list(2), (std::vector<int>{-1, -1, -1}));
  EXPECT_EQ(list(3), (std::vector<int>{0, -1, -1}));  // visible from its last position on
  EXPECT_EQ(list(11), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(list(27), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(list(31), (std::vector<int>{0, 1, 7}));
  EXPECT_EQ(list(39), (std::vector<int>{0, 1, 7}));
}

TEST(Hadamard, IsItsOwnInverseAndKeepsLength) {
  TestContext t(Numerics::fp32);
  Rng rng(6);
  for (const std::int64_t width : {32, 64, 128}) {
    const Tensor x = random_rows(rng, {3, width});
    const std::vector<float> before = values(x);
    const Tensor once = ops::hadamard(t.ctx, to_dtype(x, DType::f32));
    const Tensor twice = ops::hadamard(t.ctx, to_dtype(once, DType::f32));
    EXPECT_LE(difference(values(twice), before).max_abs, 2e-6);
    // Entry (i, j) of the matrix is (-1)^popcount(i & j) / sqrt(width).
    double want = 0;
    for (std::int64_t j = 0; j < width; ++j) {
      want += (__builtin_popcountll(static_cast<unsigned long long>(5 & j)) % 2 == 0 ? 1 : -1) *
              static_cast<double>(before[static_cast<std::size_t>(j)]);
    }
    EXPECT_NEAR(values(once)[5], want / std::sqrt(static_cast<double>(width)), 1e-5);
  }
  EXPECT_THROW((void)ops::hadamard(t.ctx, random_rows(rng, {1, 48})), Error);
}

}  // namespace
}  // namespace hadal::test
