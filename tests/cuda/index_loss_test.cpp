#include "kernels/index_loss.h"

#include <algorithm>

#include "cuda/stored_rows.h"

namespace hadal::test {
namespace {

struct Case {
  std::vector<std::int64_t> lengths;
  std::int64_t n_heads, width, index_n_heads, index_width, ratio, topk = 0;
  std::int64_t recall_topk = 0;
  DType dtype = DType::f32;
};

std::string describe(const Case& c) {
  std::string what = std::string(to_string(c.dtype)) + ", " + std::to_string(c.n_heads) + " x " +
                     std::to_string(c.width) + ", indexer " + std::to_string(c.index_n_heads) +
                     " x " + std::to_string(c.index_width) + ", ratio " + std::to_string(c.ratio) +
                     ", topk " + std::to_string(c.topk) + ", tokens";
  for (const std::int64_t n : c.lengths) what += " " + std::to_string(n);
  return what;
}

class CudaIndexLoss : public CudaTest {
 protected:
  struct Problem {
    Case c;
    std::int64_t n_tokens = 0, n_entries = 0;
    Tensor index_queries, index_weights, index_keys, queries, log_sum_exp, selected;
    std::vector<StoredRows> stored;
    std::vector<AttentionSequence> host;

    [[nodiscard]] std::vector<AttentionSequence> sequences(bool device) const {
      std::vector<AttentionSequence> all = host;
      for (std::size_t i = 0; i < all.size(); ++i) {
        all[i].entries = device ? stored[i].device() : stored[i].host();
      }
      return all;
    }
  };
  struct Outputs {
    Tensor loss, mass, recall, best_recall, dqueries, dweights, dkeys;
  };

  Problem make(const Case& c) {
    Problem p;
    p.c = c;
    const KvRowFormat format =
        c.dtype == DType::f32
            ? KvRowFormat{.kind = KvRowKind::f32, .width = c.width}
            : KvRowFormat{.kind = KvRowKind::fp8_mixed, .width = c.width, .rope = 8};
    for (const std::int64_t n : c.lengths) {
      const std::int64_t all = n / c.ratio;
      p.stored.emplace_back(format, std::max<std::int64_t>(all, 1), 16);
      if (all > 0) {
        const StoreRange range{0, all, p.stored.back().host()};
        run_cpu(kStoreRows, c.dtype, {.x = random({all, c.width}, c.dtype), .ranges = {&range, 1}});
      }
      p.host.push_back({.begin = p.n_tokens,
                        .end = p.n_tokens + n,
                        .added = {.row = p.n_entries, .count = all, .first = 0}});
      p.n_tokens += n, p.n_entries += all;
    }
    p.index_queries = random({p.n_tokens, c.index_n_heads, c.index_width}, c.dtype, 0.5f);
    p.index_weights = random({p.n_tokens, c.index_n_heads}, c.dtype, 0.5f);
    p.index_keys = random({p.n_entries, c.index_width}, c.dtype, 0.5f);
    p.queries = random({p.n_tokens, c.n_heads, c.width}, c.dtype);
    // What a softmax over the entries and some other keys might have had.
    p.log_sum_exp = random({p.n_tokens, c.n_heads}, DType::f32, 0.3f);
    for (std::int64_t i = 0; i < p.log_sum_exp.numel(); ++i) p.log_sum_exp.data<float>()[i] += 5.0f;
    choose(p);
    for (StoredRows& rows : p.stored) rows.send([&](const Tensor& x) { return to_device(x); });
    return p;
  }
  void choose(Problem& p) {
    const Case& c = p.c;
    if (c.topk == 0) return;
    p.selected = Tensor::empty({p.n_tokens, c.topk}, DType::i32);
    std::int64_t t = 0;
    for (const std::int64_t n : c.lengths) {
      for (std::int64_t i = 0; i < n; ++i, ++t) {
        std::vector<std::int32_t> list;
        for (std::int32_t e = 0; e < (i + 1) / c.ratio; ++e) list.push_back(e);
        if (std::ssize(list) > c.topk) {
          std::shuffle(list.begin(), list.end(), rng());
          list.resize(static_cast<std::size_t>(c.topk - (t % 7 == 3 ? 1 : 0)));
          std::sort(list.begin(), list.end());
        }
        list.resize(static_cast<std::size_t>(c.topk), -1);
        std::copy(list.begin(), list.end(), p.selected.data<std::int32_t>() + t * c.topk);
      }
    }
  }

  static IndexLossArgs args(const Problem& p, const Outputs& out,
                            std::span<const AttentionSequence> sequences) {
    return {.loss = out.loss,
            .mass = out.mass,
            .recall = out.recall,
            .best_recall = out.best_recall,
            .dindex_queries = out.dqueries,
            .dindex_weights = out.dweights,
            .dindex_keys = out.dkeys,
            .index_queries = p.index_queries,
            .index_weights = p.index_weights,
            .index_keys = p.index_keys,
            .queries = p.queries,
            .log_sum_exp = p.log_sum_exp,
            .selected = p.selected,
            .ratio = p.c.ratio,
            .recall_topk = p.c.recall_topk,
            .softmax_scale = 1.0f / std::sqrt(static_cast<float>(p.c.width)),
            .scale = 1.0f / 64,
            .sequences = sequences};
  }
  template <class Empty>
  static Outputs outputs(const Problem& p, Empty&& empty) {
    return {empty(Shape{p.n_tokens}, DType::f32),
            empty(Shape{p.n_tokens}, DType::f32),
            p.c.recall_topk > 0 ? empty(Shape{p.n_tokens}, DType::f32) : Tensor(),
            p.c.recall_topk > 0 ? empty(Shape{p.n_tokens}, DType::f32) : Tensor(),
            empty(p.index_queries.shape(), DType::f32),
            empty(p.index_weights.shape(), DType::f32),
            empty(p.index_keys.shape(), DType::f32)};
  }
  Outputs on_cpu(const Problem& p) {
    const Outputs out =
        outputs(p, [](const Shape& shape, DType dtype) { return Tensor::empty(shape, dtype); });
    const std::vector<AttentionSequence> sequences = p.sequences(false);
    run_cpu(kIndexLoss, p.c.dtype, args(p, out, sequences));
    return out;
  }
  Outputs on_gpu(const Problem& p, bool gradients = true) {
    Problem d = p;
    for (Tensor* x : {&d.index_queries, &d.index_weights, &d.index_keys, &d.queries, &d.log_sum_exp,
                      &d.selected}) {
      *x = to_device(*x);
    }
    Outputs out =
        outputs(p, [&](const Shape& shape, DType dtype) { return device_empty(shape, dtype); });
    if (!gradients) out.dqueries = out.dweights = out.dkeys = {};
    const std::vector<AttentionSequence> sequences = p.sequences(true);
    run_gpu(kIndexLoss, p.c.dtype, args(d, out, sequences));
    for (Tensor* x : {&out.loss, &out.mass, &out.recall, &out.best_recall, &out.dqueries,
                      &out.dweights, &out.dkeys}) {
      if (*x) *x = to_host(*x);
    }
    return out;
  }

  void expect_same(const Case& c) {
    // f32 sums on both sides, of the same values, in another order; exponentials of another
    // polynomial.
    constexpr double kRel = 2e-5;
    const Problem p = make(c);
    const Outputs want = on_cpu(p), got = on_gpu(p);
    const std::string of = " of " + describe(c);
    expect_close(got.mass, want.mass, kRel, 1e-6, "mass" + of);
    expect_close(got.loss, want.loss, kRel, 1e-5, "loss" + of);
    if (want.recall) {
      expect_close(got.recall, want.recall, kRel, 1e-5, "recall" + of);
      expect_close(got.best_recall, want.best_recall, kRel, 1e-5, "best_recall" + of);
    }
    expect_close(got.dqueries, want.dqueries, kRel, 1e-8, "dindex_queries" + of);
    expect_close(got.dweights, want.dweights, kRel, 1e-8, "dindex_weights" + of);
    if (p.n_entries > 0) {
      expect_close(got.dkeys, want.dkeys, kRel, 1e-8, "dindex_keys" + of);
    }
    const Outputs alone = on_gpu(p, false);
    expect_same_bytes(alone.loss, got.loss, "loss without gradients" + of);
  }
};

TEST_F(CudaIndexLoss, AllVisibleEntries) {
  for (const Case& c : {Case{{1}, 1, 8, 1, 4, 1},
                        {{3}, 2, 8, 2, 8, 4},
                        {{70, 1, 33}, 3, 16, 2, 32, 4},
                        {{300}, 4, 64, 3, 33, 2},
                        {{130, 67}, 8, 128, 8, 64, 4, 0, 0, DType::bf16},
                        {{60}, 4, 512, 64, 128, 4, 0, 0, DType::bf16}}) {
    expect_same(c);
  }
}

TEST_F(CudaIndexLoss, Lists) {
  for (const Case& c : {Case{{40}, 2, 8, 2, 8, 4, 3},
                        {{130, 9, 70}, 3, 16, 2, 32, 4, 7},
                        {{300, 130}, 8, 128, 8, 64, 4, 16, 0, DType::bf16},
                        {{150}, 8, 64, 5, 256, 2, 64, 0, DType::bf16}}) {
    expect_same(c);
  }
}

TEST_F(CudaIndexLoss, Recall) {
  for (const Case& c : {Case{{70, 33}, 3, 16, 2, 32, 4, 0, 5},
                        {{1100}, 2, 8, 2, 8, 2, 0, 33},
                        {{70, 33}, 3, 16, 2, 32, 4, 5, 5},
                        {{300, 20}, 8, 128, 8, 64, 4, 16, 16, DType::bf16}}) {
    expect_same(c);
  }
}

// Weights of zero leave every score at zero: ties go to the lower entry.
TEST_F(CudaIndexLoss, RecallOfTies) {
  Problem p = make({{64}, 2, 8, 2, 8, 2, 0, 5});
  std::fill_n(p.index_weights.data<float>(), p.index_weights.numel(), 0.0f);
  expect_close(on_gpu(p).recall, on_cpu(p).recall, 1e-5, 1e-6, "recall of ties");
}

TEST_F(CudaIndexLoss, RowsThatAttendToNothing) {
  Problem p = make({{40}, 2, 8, 2, 8, 4, 3});
  std::fill_n(p.log_sum_exp.data<float>() + 30 * 2, 2, 200.0f);
  const Outputs got = on_gpu(p);
  EXPECT_EQ(value_at(got.loss, 30), 0.0f);
  EXPECT_EQ(value_at(got.loss, 2), 0.0f);  // before the first entry
  for (int i = 0; i < 16; ++i) EXPECT_EQ(value_at(got.dqueries, 30 * 16 + i), 0.0f);
  p.log_sum_exp.data<float>()[35 * 2] = std::nanf("");
  EXPECT_TRUE(std::isnan(value_at(on_gpu(p).loss, 35)));
}

TEST_F(CudaIndexLoss, RepeatsToTheBitAndDoesNotDependOnOtherSequences) {
  const Problem p = make({{300, 77}, 8, 128, 8, 64, 4, 16, 16, DType::bf16});
  const Outputs first = on_gpu(p), again = on_gpu(p);
  expect_same_bytes(again.loss, first.loss, "loss");
  expect_same_bytes(again.dqueries, first.dqueries, "dindex_queries");
  expect_same_bytes(again.dweights, first.dweights, "dindex_weights");
  expect_same_bytes(again.dkeys, first.dkeys, "dindex_keys");
  Problem alone = p;
  alone.host.resize(1);
  const Outputs one = on_gpu(alone);
  expect_same_bytes(one.loss.slice(0, 300), first.loss.slice(0, 300), "loss alone");
  expect_same_bytes(one.recall.slice(0, 300), first.recall.slice(0, 300), "recall alone");
  expect_same_bytes(one.dkeys.slice(0, 75), first.dkeys.slice(0, 75), "dindex_keys alone");
}

TEST_F(CudaIndexLoss, SaysWhatItCannotDo) {
  Problem p = make({{20}, 2, 8, 2, 8, 4});
  p.host[0].start = 4;
  EXPECT_THROW(on_gpu(p), Error);
  const Problem wide = make({{8}, 1, 8, 1, 264, 4});
  EXPECT_THROW(on_gpu(wide), Error);
}

}  // namespace
}  // namespace hadal::test
