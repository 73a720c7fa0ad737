#include <algorithm>

#include "cuda/stored_rows.h"
#include "kernels/sparse_attention.h"

namespace hadal::test {
namespace {

struct SequenceCase {
  std::int64_t start, n;
};
struct Case {
  std::vector<SequenceCase> sequences;
  std::int64_t n_heads, width, window, ratio = 0, topk = 0;  // topk 0: all visible
  DType dtype = DType::f32;
};

std::string describe(const Case& c) {
  std::string what = std::string(to_string(c.dtype)) + ", " + std::to_string(c.n_heads) + " x " +
                     std::to_string(c.width) + ", window " + std::to_string(c.window) + ", ratio " +
                     std::to_string(c.ratio) + ", topk " + std::to_string(c.topk) + ", tokens";
  for (const SequenceCase& s : c.sequences) {
    what += " " + std::to_string(s.start) + "+" + std::to_string(s.n);
  }
  return what;
}

class CudaAttentionBackward : public CudaTest {
 protected:
  static constexpr std::int64_t kRing = 64, kRowsPerPage = 16;

  struct Gradients {
    Tensor dq, drows, dentries, dsinks;
  };

  // A step over sequences, some of which have a past, after its forward on the CPU.
  struct Problem {
    Case c;
    KvRowFormat format;
    std::int64_t n_tokens = 0, n_added = 0;
    Tensor q, d_o, o, log_sum_exp, sinks, selected;
    std::vector<StoredRows> stored;  // the new rows, then window and entries of every sequence
    std::vector<AttentionSequence> host;

    [[nodiscard]] std::vector<AttentionSequence> sequences(bool device) const {
      std::vector<AttentionSequence> all = host;
      for (std::size_t i = 0; i < all.size(); ++i) {
        const StoredRows &window = stored[1 + 2 * i], &entries = stored[2 + 2 * i];
        all[i].window = device ? window.device() : window.host();
        all[i].entries = device ? entries.device() : entries.host();
      }
      return all;
    }
  };

  void store(const StoredRows& to, std::int64_t n, const KvRowFormat& format, DType dtype,
             std::int64_t first, std::int64_t modulus) {
    if (n == 0) return;
    const StoreRange range{0, n, to.host(), first, modulus};
    run_cpu(kStoreRows, dtype, {.x = random({n, format.width}, dtype), .ranges = {&range, 1}});
  }

  void choose(Problem& p) {
    const Case& c = p.c;
    if (c.topk == 0) return;
    p.selected = Tensor::empty({p.n_tokens, c.topk}, DType::i32);
    std::int64_t t = 0;
    for (const SequenceCase& s : c.sequences) {
      for (std::int64_t i = 0; i < s.n; ++i, ++t) {
        const std::int64_t visible = (s.start + i + 1) / c.ratio;
        std::vector<std::int32_t> list;
        for (std::int32_t e = 0; e < visible; ++e) list.push_back(e);
        std::shuffle(list.begin(), list.end(), rng());
        // Every seventh list is one short.
        const std::int64_t kept = std::min<std::int64_t>(visible, c.topk - (t % 7 == 3 ? 1 : 0));
        list.resize(static_cast<std::size_t>(visible <= c.topk ? visible : kept));
        std::sort(list.begin(), list.end());
        list.resize(static_cast<std::size_t>(c.topk), -1);
        std::copy(list.begin(), list.end(), p.selected.data<std::int32_t>() + t * c.topk);
      }
    }
  }

  Problem make(const Case& c) {
    Problem p;
    p.c = c;
    p.format = c.dtype == DType::f32
                   ? KvRowFormat{.kind = KvRowKind::f32, .width = c.width}
                   : KvRowFormat{.kind = KvRowKind::fp8_mixed, .width = c.width, .rope = 8};
    for (const SequenceCase& s : c.sequences) p.n_tokens += s.n;
    p.stored.emplace_back(p.format, p.n_tokens, kRowsPerPage);
    store(p.stored.back(), p.n_tokens, p.format, c.dtype, 0, 0);
    std::int64_t t = 0;
    for (const SequenceCase& s : c.sequences) {
      const std::int64_t all = c.ratio == 0 ? 0 : (s.start + s.n) / c.ratio;
      const std::int64_t before = c.ratio == 0 ? 0 : s.start / c.ratio;
      const std::int64_t history = std::min(s.start, c.window - 1);
      p.stored.emplace_back(p.format, kRing, kRowsPerPage);
      store(p.stored.back(), history, p.format, c.dtype, s.start - history, kRing);
      p.stored.emplace_back(p.format, std::max<std::int64_t>(all, 1), kRowsPerPage);
      store(p.stored.back(), all, p.format, c.dtype, 0, 0);
      p.host.push_back({.begin = t,
                        .end = t + s.n,
                        .start = s.start,
                        .ring_rows = kRing,
                        .added = {.row = p.n_added, .count = all - before, .first = before}});
      t += s.n, p.n_added += all - before;
    }
    p.q = random({p.n_tokens, c.n_heads, c.width}, c.dtype, 0.7f);
    p.d_o = random(p.q.shape(), DType::f32, 1e-2f);
    p.sinks = random({c.n_heads}, DType::f32);
    choose(p);
    p.o = Tensor::empty(p.q.shape(), c.dtype);
    p.log_sum_exp = Tensor::empty({p.n_tokens, c.n_heads}, DType::f32);
    const std::vector<AttentionSequence> sequences = p.sequences(false);
    run_cpu(kSparseAttention, c.dtype,
            {.o = p.o,
             .q = p.q,
             .new_rows = p.stored[0].host(),
             .sinks = p.sinks,
             .selected = p.selected,
             .window = c.window,
             .ratio = c.ratio,
             .softmax_scale = scale(c),
             .sequences = sequences,
             .log_sum_exp = p.log_sum_exp});
    for (StoredRows& rows : p.stored) rows.send([&](const Tensor& x) { return to_device(x); });
    return p;
  }
  static float scale(const Case& c) { return 1.0f / std::sqrt(static_cast<float>(c.width)); }

  Gradients outputs(const Problem& p, const Tensor& dsinks) {
    return {Tensor::empty(p.q.shape(), DType::f32),
            Tensor::empty({p.n_tokens, p.c.width}, DType::f32),
            Tensor::empty({p.n_added, p.c.width}, DType::f32), copy_of(dsinks)};
  }
  static SparseAttentionBackwardArgs args(const Problem& p, const Gradients& out,
                                          const PagedRows& new_rows,
                                          std::span<const AttentionSequence> sequences) {
    return {.dq = out.dq,
            .drows = out.drows,
            .dentries = out.dentries,
            .dsinks = out.dsinks,
            .d_o = p.d_o,
            .o = p.o,
            .log_sum_exp = p.log_sum_exp,
            .q = p.q,
            .new_rows = new_rows,
            .sinks = p.sinks,
            .selected = p.selected,
            .window = p.c.window,
            .ratio = p.c.ratio,
            .softmax_scale = scale(p.c),
            .sequences = sequences};
  }
  Gradients on_cpu(const Problem& p, const Tensor& dsinks) {
    const Gradients out = outputs(p, dsinks);
    const std::vector<AttentionSequence> sequences = p.sequences(false);
    run_cpu(kSparseAttentionBackward, p.c.dtype, args(p, out, p.stored[0].host(), sequences));
    return out;
  }
  Gradients on_gpu(const Problem& p, const Tensor& dsinks) {
    Problem d = p;
    for (Tensor* x : {&d.q, &d.d_o, &d.o, &d.log_sum_exp, &d.sinks, &d.selected}) {
      *x = to_device(*x);
    }
    const Gradients out{device_empty(p.q.shape(), DType::f32),
                        device_empty({p.n_tokens, p.c.width}, DType::f32),
                        device_empty({p.n_added, p.c.width}, DType::f32), to_device(dsinks)};
    const std::vector<AttentionSequence> sequences = p.sequences(true);
    run_gpu(kSparseAttentionBackward, p.c.dtype, args(d, out, p.stored[0].device(), sequences));
    return {to_host(out.dq), to_host(out.drows), p.n_added > 0 ? to_host(out.dentries) : Tensor(),
            to_host(out.dsinks)};
  }

  void expect_same(const Case& c, double rel) {
    const Problem p = make(c);
    const Tensor dsinks = random({c.n_heads}, DType::f32, 1e-3f);
    const Gradients want = on_cpu(p, dsinks), got = on_gpu(p, dsinks);
    expect_close(got.dq, want.dq, rel, 1e-8, "dq of " + describe(c));
    expect_close(got.drows, want.drows, rel, 1e-8, "drows of " + describe(c));
    if (p.n_added > 0) {
      expect_close(got.dentries, want.dentries, rel, 1e-8, "dentries of " + describe(c));
    }
    expect_close(got.dsinks, want.dsinks, rel, 1e-7, "dsinks of " + describe(c));
  }
};

// Sums in another order, exponentials of another polynomial, d - delta with some cancellation.
constexpr double kF32 = 2e-5;
// d_o, p and dz are rounded to bf16 (1.1e-3 each in the root of the mean square), and d - delta
// is smaller than what it is a difference of.
constexpr double kBf16 = 6e-3;

TEST_F(CudaAttentionBackward, F32) {
  for (const Case& c : {Case{{{0, 1}}, 1, 4, 1},
                        {{{0, 7}}, 2, 12, 3},
                        {{{0, 70}, {0, 1}, {0, 33}}, 3, 20, 8, 4},
                        {{{0, 130}}, 2, 64, 16, 4, 6},
                        {{{0, 65}, {0, 40}}, 8, 32, 10, 4, 5},
                        {{{0, 300}}, 4, 16, 24, 128}}) {
    expect_same(c, kF32);
  }
}

TEST_F(CudaAttentionBackward, Bf16OnTensorCores) {
  for (const Case& c : {Case{{{0, 1}}, 1, 64, 1, 0, 0, DType::bf16},
                        {{{0, 9}}, 8, 128, 4, 0, 0, DType::bf16},
                        {{{0, 200}, {0, 1}, {0, 77}}, 8, 128, 32, 4, 0, DType::bf16},
                        {{{0, 300}, {0, 130}}, 8, 128, 24, 4, 16, DType::bf16},
                        {{{0, 400}}, 8, 128, 128, 128, 0, DType::bf16},
                        {{{0, 150}}, 3, 64, 20, 4, 9, DType::bf16},
                        {{{0, 90}}, 5, 192, 20, 4, 0, DType::bf16},
                        {{{0, 70}}, 4, 256, 20, 4, 7, DType::bf16},
                        {{{0, 80}, {0, 20}}, 16, 512, 24, 4, 8, DType::bf16}}) {
    expect_same(c, kBf16);
  }
}

// Long enough that gradients of entries come in parts, and that more than two tiles of entries have
// lists.
TEST_F(CudaAttentionBackward, EntriesInParts) {
  expect_same({{{0, 1030}}, 8, 128, 128, 4, 64, DType::bf16}, kBf16);
  expect_same({{{0, 1030}}, 8, 64, 16, 4, 0, DType::bf16}, kBf16);
  expect_same({{{0, 1030}}, 4, 8, 16, 16, 0, DType::f32}, kF32);
}

// Widths that tensor cores do not have here: bf16 values, f32 products.
TEST_F(CudaAttentionBackward, Bf16OfOtherWidths) {
  expect_same({{{0, 70}, {0, 30}}, 3, 40, 16, 4, 6, DType::bf16}, 1e-4);
}

// Rows and entries from before the step are read and get no gradient.
TEST_F(CudaAttentionBackward, APastIsConstant) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const double rel = dtype == DType::f32 ? kF32 : kBf16;
    expect_same({{{37, 50}, {0, 20}, {3, 9}}, 4, 64, 20, 0, 0, dtype}, rel);
    expect_same({{{37, 50}, {0, 20}, {3, 90}}, 4, 64, 20, 4, 0, dtype}, rel);
    expect_same({{{290, 50}, {100, 20}}, 4, 64, 20, 4, 7, dtype}, rel);
  }
}

TEST_F(CudaAttentionBackward, RepeatsToTheBitAndDoesNotDependOnOtherSequences) {
  const Case c{{{0, 500}, {0, 77}}, 8, 128, 64, 4, 32, DType::bf16};
  const Problem p = make(c);
  const Tensor dsinks = Tensor::zeros({8}, DType::f32);
  const Gradients first = on_gpu(p, dsinks), again = on_gpu(p, dsinks);
  expect_same_bytes(again.dq, first.dq, "dq");
  expect_same_bytes(again.drows, first.drows, "drows");
  expect_same_bytes(again.dentries, first.dentries, "dentries");
  expect_same_bytes(again.dsinks, first.dsinks, "dsinks");
  Problem alone = p;
  alone.host.resize(1);
  const Gradients one = on_gpu(alone, dsinks);
  expect_same_bytes(one.dq.slice(0, 500), first.dq.slice(0, 500), "dq alone");
  expect_same_bytes(one.drows.slice(0, 500), first.drows.slice(0, 500), "drows alone");
  expect_same_bytes(one.dentries.slice(0, 125), first.dentries.slice(0, 125), "dentries alone");
}

TEST_F(CudaAttentionBackward, NothingWantedOrNothingThere) {
  const Problem p = make({{{0, 12}}, 8, 128, 4, 4, 0, DType::bf16});
  Problem d = p;
  for (Tensor* x : {&d.q, &d.d_o, &d.o, &d.log_sum_exp, &d.sinks}) *x = to_device(*x);
  const std::vector<AttentionSequence> sequences = p.sequences(true);
  run_gpu(kSparseAttentionBackward, p.c.dtype, args(d, {}, p.stored[0].device(), sequences));
  for (Tensor* x : {&d.q, &d.d_o, &d.o, &d.log_sum_exp}) *x = x->slice(0, 0);
  run_gpu(kSparseAttentionBackward, p.c.dtype, args(d, {}, p.stored[0].device(), {}));
  queue().wait();
}

}  // namespace
}  // namespace hadal::test
