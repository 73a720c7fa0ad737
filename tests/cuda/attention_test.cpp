#include <fmt/format.h>

#include <set>

#include "cuda/paged_store.h"
#include "kernels/sparse_attention.h"

namespace hadal::test {
namespace {

struct AttentionCase {
  std::int64_t n_heads, width, rope, window, ratio, topk;        // topk 0: all visible
  std::vector<std::pair<std::int64_t, std::int64_t>> sequences;  // start, tokens
  float loudness = 1.0f;  // of queries: how far scores spread
};

// A batch on both sides. Every sequence has a ring with room for all its positions, all of them
// stored, so that any token can also be run alone.
struct AttentionBatch {
  AttentionCase shape;
  DType dtype = DType::bf16;
  Tensor q, sinks, selected;
  Tensor device_q, device_sinks, device_selected;
  PagedStore new_rows;
  std::vector<PagedStore> rings, entries;
  std::vector<std::int64_t> begins, positions;  // of each sequence; positions it has
};

class CudaAttention : public PagedTest {
 protected:
  AttentionBatch make(const AttentionCase& c, DType dtype, KvRowKind kind) {
    AttentionBatch b;
    b.shape = c, b.dtype = dtype;
    const KvRowFormat format{kind, c.width, kind == KvRowKind::fp8_mixed ? c.rope : 0};
    std::int64_t n_tokens = 0;
    for (const auto& [start, n] : c.sequences) n_tokens += n;
    const Tensor all = Tensor::empty({n_tokens, c.width}, dtype);
    if (c.topk > 0 && c.ratio > 0) b.selected = Tensor::empty({n_tokens, c.topk}, DType::i32);
    std::int64_t token = 0;
    for (const auto& [start, n] : c.sequences) {
      const Tensor rows = random({start + n, c.width}, dtype);
      b.rings.push_back(stored(rows, format, start + n));
      const std::size_t row_bytes = rows.nbytes() / static_cast<std::size_t>(start + n);
      std::copy_n(rows.bytes() + static_cast<std::size_t>(start) * row_bytes,
                  static_cast<std::size_t>(n) * row_bytes,
                  all.bytes() + static_cast<std::size_t>(token) * row_bytes);
      const std::int64_t n_entries = c.ratio == 0 ? 0 : (start + n) / c.ratio;
      b.entries.push_back(
          stored(random({std::max<std::int64_t>(1, n_entries), c.width}, dtype), format, 7));
      for (std::int64_t i = 0; b.selected && i < n; ++i) {
        list(b.selected.data<std::int32_t>() + (token + i) * c.topk, (start + i + 1) / c.ratio,
             c.topk);
      }
      b.begins.push_back(token);
      b.positions.push_back(start + n);
      token += n;
    }
    b.new_rows = stored(all, format, std::max<std::int64_t>(1, n_tokens));
    b.q = random({n_tokens, c.n_heads, c.width}, dtype, c.loudness);
    b.sinks = random({c.n_heads}, DType::f32);
    b.device_q = to_device(b.q);
    b.device_sinks = to_device(b.sinks);
    b.device_selected = to_device(b.selected);
    return b;
  }

  // topk of n entries, ascending; all of them when there are no more.
  void list(std::int32_t* out, std::int64_t n, std::int64_t topk) {
    std::set<std::int32_t> chosen;
    std::uniform_int_distribution<std::int64_t> any(0, std::max<std::int64_t>(0, n - 1));
    for (std::int64_t i = 0; n <= topk && i < n; ++i) chosen.insert(static_cast<std::int32_t>(i));
    while (n > topk && static_cast<std::int64_t>(chosen.size()) < topk) {
      chosen.insert(static_cast<std::int32_t>(any(rng())));
    }
    std::fill_n(std::copy(chosen.begin(), chosen.end(), out),
                topk - static_cast<std::int64_t>(chosen.size()), -1);
  }

  struct Output {
    Tensor o, log_sum_exp;
  };
  [[nodiscard]] static SparseAttentionArgs arguments(const AttentionBatch& b) {
    SparseAttentionArgs a;
    a.window = b.shape.window, a.ratio = b.shape.ratio;
    a.softmax_scale = 1.0f / std::sqrt(static_cast<float>(b.shape.width));
    return a;
  }
  [[nodiscard]] static std::vector<AttentionSequence> sequences(const AttentionBatch& b,
                                                                bool device) {
    std::vector<AttentionSequence> out;
    for (std::size_t i = 0; i < b.begins.size(); ++i) {
      const auto [start, n] = b.shape.sequences[i];
      const PagedStore &ring = b.rings[i], &entries = b.entries[i];
      out.push_back({.begin = b.begins[i],
                     .end = b.begins[i] + n,
                     .start = start,
                     .window = device ? ring.on_device() : ring.on_host(),
                     .ring_rows = b.positions[i],
                     .entries = device ? entries.on_device() : entries.on_host()});
    }
    return out;
  }

  Output on_cpu(const AttentionBatch& b) {
    Output out{Tensor::empty(b.q.shape(), b.dtype),
               Tensor::empty({b.q.dim(0), b.q.dim(1)}, DType::f32)};
    SparseAttentionArgs a = arguments(b);
    const std::vector<AttentionSequence> all = sequences(b, false);
    a.o = out.o, a.q = b.q, a.new_rows = b.new_rows.on_host(), a.sinks = b.sinks;
    a.selected = b.selected, a.sequences = all, a.log_sum_exp = out.log_sum_exp;
    run_cpu(kSparseAttention, b.dtype, a);
    return out;
  }
  Output on_gpu(const AttentionBatch& b) {
    const Tensor o = device_empty(b.q.shape(), b.dtype);
    const Tensor log_sum_exp = device_empty({b.q.dim(0), b.q.dim(1)}, DType::f32);
    SparseAttentionArgs a = arguments(b);
    const std::vector<AttentionSequence> all = sequences(b, true);
    a.o = o, a.q = b.device_q, a.new_rows = b.new_rows.on_device(), a.sinks = b.device_sinks;
    a.selected = b.device_selected, a.sequences = all, a.log_sum_exp = log_sum_exp;
    run_gpu(kSparseAttention, b.dtype, a);
    return {to_host(o), to_host(log_sum_exp)};
  }

  // Tokens [from, from + n) of sequence i as a call of their own.
  Tensor part_on_gpu(const AttentionBatch& b, std::size_t i, std::int64_t from, std::int64_t n,
                     bool with_list = true) {
    const std::int64_t token = b.begins[i] + from;
    const Tensor o = device_empty({n, b.q.dim(1), b.q.dim(2)}, b.dtype);
    // Rows of this step alone: a page that holds only them.
    const Tensor bytes = Tensor::empty({n, b.new_rows.format.row_bytes()}, DType::u8);
    std::byte* page = bytes.bytes();
    const PagedRows own{b.new_rows.format, {&page, 1}, n};
    const CopyRange range{token, token + n, own};
    run_cpu(kCopyRows, b.dtype, {.from = b.new_rows.on_host(), .ranges = {&range, 1}});
    const Tensor device_bytes = to_device(bytes);
    std::byte* device_page = device_bytes.bytes();
    SparseAttentionArgs a = arguments(b);
    const AttentionSequence sequence{.begin = 0,
                                     .end = n,
                                     .start = b.shape.sequences[i].first + from,
                                     .window = b.rings[i].on_device(),
                                     .ring_rows = b.positions[i],
                                     .entries = b.entries[i].on_device()};
    a.o = o, a.q = b.device_q.view().slice(token, token + n), a.sinks = b.device_sinks;
    a.new_rows = {b.new_rows.format, {&device_page, 1}, n};
    if (with_list && b.selected) a.selected = b.device_selected.view().slice(token, token + n);
    a.sequences = {&sequence, 1};
    run_gpu(kSparseAttention, b.dtype, a);
    return to_host(o);
  }
  static Tensor rows_of(const Tensor& o, std::int64_t begin, std::int64_t n) {
    const Tensor part = Tensor::empty({n, o.dim(1), o.dim(2)}, o.dtype());
    const std::size_t row = o.nbytes() / static_cast<std::size_t>(o.dim(0));
    std::copy_n(o.bytes() + static_cast<std::size_t>(begin) * row,
                static_cast<std::size_t>(n) * row, part.bytes());
    return part;
  }
};

std::string describe(const AttentionCase& c, DType dtype, KvRowKind kind) {
  return fmt::format("{} heads of {} {}, rows {}/{}, window {}, ratio {}, topk {}, {} sequences",
                     c.n_heads, c.width, to_string(dtype), name_of(kind), c.rope, c.window, c.ratio,
                     c.topk, c.sequences.size());
}

const AttentionCase kCases[] = {
    {1, 16, 8, 1, 0, 0, {{0, 1}}},                        // only itself
    {3, 64, 16, 4, 0, 0, {{0, 37}}},                      // a window that fills up
    {5, 48, 8, 16, 4, 0, {{0, 50}, {13, 1}}},             // rows of no 16 bytes
    {8, 128, 64, 128, 4, 64, {{0, 300}, {400, 3}}},       // the small training model
    {17, 64, 16, 16, 4, 6, {{0, 70}, {5, 64}, {99, 1}}},  // lists, some of them all
    {64, 192, 64, 63, 7, 0, {{0, 65}, {1000, 2}}},        // one tile less one, ratio of a prime
    {16, 512, 64, 65, 128, 0, {{640, 130}}},              // one past a tile
    {33, 512, 64, 128, 4, 65, {{129, 5}, {0, 2}}},        // a head and an entry past a tile
    {64, 512, 64, 128, 128, 0, {{9000, 1}, {131, 1}}},    // decode, all visible
    {64, 512, 64, 128, 4, 512, {{3001, 2}, {100, 1}}},    // decode, selected
    {128, 512, 64, 128, 4, 1024, {{5000, 2}}},            // V4-Pro
    {64, 512, 64, 128, 4, 512, {{2500, 1}}, 12.0f},       // one row takes it all
    {64, 512, 64, 128, 4, 64, {{500, 150}}},              // enough tokens for 64 heads a block
};

TEST_F(CudaAttention, EqualsTheCpu) {
  for (const AttentionCase& c : kCases) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const KvRowKind kind : {KvRowKind::fp8_mixed, KvRowKind::f32}) {
        const std::string what = describe(c, dtype, kind);
        const AttentionBatch b = make(c, dtype, kind);
        const Output want = on_cpu(b), got = on_gpu(b);
        // f32: sums in another order and exp to 2 ulp, where a score of s moves its probability by
        // an ulp of s. bf16: p is rounded against another maximum, which moves it by up to 2^-8
        // (like a random number of a third of that), in an output that is a sum of as random
        // values; then the output is rounded.
        const double loud = static_cast<double>(std::max(1.0f, c.loudness));
        expect_close(got.o, want.o, dtype == DType::f32 ? 2e-6 * loud : 4e-3, 1e-6, what);
        expect_close(got.log_sum_exp, want.log_sum_exp, 2e-6, 1e-5 * loud, what + ": log_sum_exp");
      }
    }
  }
}

TEST_F(CudaAttention, ReadsFp4Rows) {
  const AttentionCase c{16, 128, 0, 40, 4, 0, {{0, 33}, {70, 2}}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const AttentionBatch b = make(c, dtype, KvRowKind::fp4);
    expect_close(on_gpu(b).o, on_cpu(b).o, dtype == DType::f32 ? 2e-6 : 4e-3, 1e-6,
                 describe(c, dtype, KvRowKind::fp4));
  }
}

// The same bytes in the batch, token by token, and in chunks: other heads a block, other kernels'
// grids, and lists that are not there because nothing is left out.
TEST_F(CudaAttention, ATokenDoesNotKnowItsBatch) {
  const AttentionCase cases[] = {
      {64, 512, 64, 128, 4, 96, {{0, 140}, {380, 9}, {1700, 1}, {3, 1}}},
      {64, 512, 64, 128, 128, 0, {{200, 137}, {20000, 1}}},
      {9, 64, 16, 20, 4, 5, {{0, 61}, {90, 3}}},
      {32, 128, 64, 128, 4, 0, {{300, 140}}},  // 32 heads a block
  };
  for (const AttentionCase& c : cases) {
    // f32 rows with bf16 queries never take the path of few tokens: other kernels meet there.
    for (const auto& [dtype, kind] : {std::pair{DType::bf16, KvRowKind::fp8_mixed},
                                      {DType::bf16, KvRowKind::f32},
                                      {DType::f32, KvRowKind::fp8_mixed}}) {
      const AttentionBatch b = make(c, dtype, kind);
      const Tensor whole = on_gpu(b).o;
      for (std::size_t i = 0; i < b.begins.size(); ++i) {
        const std::int64_t n = c.sequences[i].second, chunk = 17;
        const std::string what = fmt::format("{}, sequence {}", describe(c, dtype, kind), i);
        for (std::int64_t t = 0; t < n; t += t < 8 ? 1 : 29) {
          expect_same_bytes(part_on_gpu(b, i, t, 1), rows_of(whole, b.begins[i] + t, 1),
                            fmt::format("{}, token {} alone", what, t));
          const bool lists_all = c.topk > 0 && (c.sequences[i].first + t + 1) / c.ratio <= c.topk;
          if (lists_all) {
            expect_same_bytes(part_on_gpu(b, i, t, 1, false), rows_of(whole, b.begins[i] + t, 1),
                              fmt::format("{}, token {} without a list", what, t));
          }
        }
        for (std::int64_t t = 0; t < n; t += chunk) {
          const std::int64_t k = std::min(chunk, n - t);
          expect_same_bytes(part_on_gpu(b, i, t, k), rows_of(whole, b.begins[i] + t, k),
                            fmt::format("{}, tokens {} to {}", what, t, t + k));
        }
      }
    }
  }
}

TEST_F(CudaAttention, AThousandSequencesAreOneBatch) {
  AttentionCase c{16, 64, 16, 24, 4, 0, {}};
  for (std::int64_t i = 0; i < 1000; ++i) c.sequences.emplace_back(i % 97, 1);
  const AttentionBatch b = make(c, DType::bf16, KvRowKind::fp8_mixed);
  const Tensor whole = on_gpu(b).o;
  expect_close(whole, on_cpu(b).o, 4e-3, 1e-6, "a thousand sequences");
  for (const std::size_t i : {0u, 1u, 500u, 999u}) {
    expect_same_bytes(part_on_gpu(b, i, 0, 1), rows_of(whole, static_cast<std::int64_t>(i), 1),
                      fmt::format("sequence {} alone", i));
  }
}

TEST_F(CudaAttention, SaysWhichWidthsItCannotDo) {
  const AttentionCase c{1, 24, 8, 4, 0, 0, {{0, 1}}};
  const AttentionBatch b = make(c, DType::bf16, KvRowKind::fp8_mixed);
  EXPECT_THROW(on_gpu(b), Error);
}

}  // namespace
}  // namespace hadal::test
