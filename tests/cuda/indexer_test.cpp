#include "kernels/indexer.h"

#include <fmt/format.h>

#include "cuda/paged_store.h"

namespace hadal::test {
namespace {

struct IndexCase {
  std::int64_t n_heads, width, ratio, topk;
  std::vector<std::pair<std::int64_t, std::int64_t>> sequences;  // start, tokens
};

struct IndexBatch {
  IndexCase shape;
  DType dtype = DType::bf16;
  Tensor q, weights, device_q, device_weights;
  std::vector<PagedStore> keys;
  std::vector<std::int64_t> begins;
};

class CudaIndexer : public PagedTest {
 protected:
  // exact: small integers, so that every score is exact in any order, and many are equal.
  IndexBatch make(const IndexCase& c, DType dtype, KvRowKind kind, bool exact) {
    IndexBatch b;
    b.shape = c, b.dtype = dtype;
    std::int64_t n_tokens = 0;
    for (const auto& [start, n] : c.sequences) {
      b.begins.push_back(n_tokens);
      n_tokens += n;
      const std::int64_t n_keys = std::max<std::int64_t>(1, (start + n) / c.ratio);
      const Tensor keys =
          exact ? integers({n_keys, c.width}, dtype, 1) : random({n_keys, c.width}, dtype);
      b.keys.push_back(stored(keys, {kind, c.width, 0}, 37));
    }
    b.q = exact ? integers({n_tokens, c.n_heads, c.width}, dtype, 1)
                : random({n_tokens, c.n_heads, c.width}, dtype);
    b.weights = exact ? integers({n_tokens, c.n_heads}, dtype, 2)
                      : random({n_tokens, c.n_heads}, dtype, 0.01f);
    if (kind == KvRowKind::fp4) run_cpu(kFakeQuantizeFp4, dtype, {.x = flat(b.q)});
    b.device_q = to_device(b.q);
    b.device_weights = to_device(b.weights);
    return b;
  }
  Tensor integers(Shape shape, DType dtype, int most) {
    const Tensor x = Tensor::empty(shape, dtype);
    std::uniform_int_distribution<int> any(-most, most);
    for (std::int64_t i = 0; i < x.numel(); ++i) set(x, i, static_cast<float>(any(rng())));
    return x;
  }
  static TensorView flat(const Tensor& x) {
    return x.view().reshape({x.dim(0) * x.dim(1), x.dim(2)});
  }

  static std::vector<IndexSequence> sequences(const IndexBatch& b, bool device) {
    std::vector<IndexSequence> out;
    for (std::size_t i = 0; i < b.begins.size(); ++i) {
      const auto [start, n] = b.shape.sequences[i];
      out.push_back({b.begins[i], b.begins[i] + n, start,
                     device ? b.keys[i].on_device() : b.keys[i].on_host()});
    }
    return out;
  }
  Tensor on_cpu(const IndexBatch& b) {
    const Tensor selected = Tensor::empty({b.q.dim(0), b.shape.topk}, DType::i32);
    const std::vector<IndexSequence> all = sequences(b, false);
    run_cpu(kIndexTopk, b.dtype,
            {.selected = selected,
             .q = b.q,
             .weights = b.weights,
             .ratio = b.shape.ratio,
             .sequences = all});
    return selected;
  }
  Tensor on_gpu(const IndexBatch& b) {
    const Tensor selected = device_empty({b.q.dim(0), b.shape.topk}, DType::i32);
    const std::vector<IndexSequence> all = sequences(b, true);
    run_gpu(kIndexTopk, b.dtype,
            {.selected = selected,
             .q = b.device_q,
             .weights = b.device_weights,
             .ratio = b.shape.ratio,
             .sequences = all});
    return to_host(selected);
  }
  // Tokens [from, from + n) of sequence i as a call of their own.
  Tensor part_on_gpu(const IndexBatch& b, std::size_t i, std::int64_t from, std::int64_t n) {
    const std::int64_t token = b.begins[i] + from;
    const Tensor selected = device_empty({n, b.shape.topk}, DType::i32);
    const IndexSequence sequence{0, n, b.shape.sequences[i].first + from, b.keys[i].on_device()};
    run_gpu(kIndexTopk, b.dtype,
            {.selected = selected,
             .q = b.device_q.view().slice(token, token + n),
             .weights = b.device_weights.view().slice(token, token + n),
             .ratio = b.shape.ratio,
             .sequences = {&sequence, 1}});
    return to_host(selected);
  }
  static Tensor rows_of(const Tensor& selected, std::int64_t begin, std::int64_t n) {
    const Tensor part = Tensor::empty({n, selected.dim(1)}, DType::i32);
    std::copy_n(selected.data<std::int32_t>() + begin * selected.dim(1), part.numel(),
                part.data<std::int32_t>());
    return part;
  }

  // Two lists that are the same but for entries which one rounding may move past each other: each
  // list has as many entries, ascending, and the differing ones score alike.
  void expect_as_good(const IndexBatch& b, const Tensor& got, const Tensor& want,
                      const std::string& what) {
    const std::int64_t topk = b.shape.topk;
    std::int64_t n_different = 0;
    for (std::size_t i = 0; i < b.begins.size(); ++i) {
      const auto [start, n] = b.shape.sequences[i];
      const Tensor keys = decoded(b.keys[i], (start + n) / b.shape.ratio);
      for (std::int64_t t = b.begins[i]; t < b.begins[i] + n; ++t) {
        const auto* g = got.data<const std::int32_t>() + t * topk;
        const auto* w = want.data<const std::int32_t>() + t * topk;
        const auto end = [&](const std::int32_t* list) { return std::find(list, list + topk, -1); };
        ASSERT_EQ(end(g) - g, end(w) - w) << what << ", token " << t;
        ASSERT_TRUE(std::is_sorted(g, end(g)) && std::adjacent_find(g, end(g)) == end(g))
            << what << ", token " << t << " is not ascending";
        std::vector<std::int32_t> extra, missing;
        std::set_difference(g, end(g), w, end(w), std::back_inserter(extra));
        std::set_difference(w, end(w), g, end(g), std::back_inserter(missing));
        double best = 0, worst = 1e30, size = 0;
        for (const std::int32_t s : missing) {
          const auto [score, sum] = score_of(b, keys, t, s);
          best = std::max(best == 0 ? -1e30 : best, score), size = std::max(size, sum);
        }
        for (const std::int32_t s : extra) worst = std::min(worst, score_of(b, keys, t, s).first);
        n_different += static_cast<std::int64_t>(extra.size());
        if (extra.empty()) continue;
        // Scores here are without the roundings of dots, terms and sum, which are 2^-9 each (and
        // of which a last bit of f32 can tip one): no closer than that are the lists compared.
        const double step = (b.dtype == DType::bf16 ? 0x1p-7 : 1e-5) * (std::fabs(best) + size);
        ASSERT_LE(best - worst, step)
            << what << ", token " << t << " prefers " << extra.front() << " to " << missing.front();
      }
    }
    // And that happens at the edge of a list only.
    EXPECT_LE(n_different, got.numel() / 20 + 2) << what;
  }
  Tensor decoded(const PagedStore& store, std::int64_t n) {
    // Through f32 rows: the stored values times nothing else.
    const Tensor x = Tensor::empty({n, store.format.width}, DType::f32);
    const PagedRows rows = store.on_host();
    for (std::int64_t r = 0; r < n; ++r) {
      for (std::int64_t c = 0; c < store.format.width; ++c) {
        float v = 0;
        if (store.format.kind == KvRowKind::f32) {
          v = reinterpret_cast<const float*>(rows.data(r))[c];
        } else {
          const auto byte = std::to_integer<unsigned>(rows.data(r)[c / 2]);
          const ue8m0 scale{std::to_integer<std::uint8_t>(rows.scale(r)[c / 32])};
          v = e2m1_to_float(static_cast<std::uint8_t>(byte >> (4 * (c & 1)))) * to_float(scale);
        }
        x.data<float>()[r * store.format.width + c] = v;
      }
    }
    return x;
  }
  // The score in double, without roundings, and a quarter of the sum of its terms' sizes.
  static std::pair<double, double> score_of(const IndexBatch& b, const Tensor& keys, std::int64_t t,
                                            std::int64_t s) {
    const std::int64_t n_heads = b.shape.n_heads, width = b.shape.width;
    double score = 0, size = 0;
    for (std::int64_t h = 0; h < n_heads; ++h) {
      double dot = 0;
      for (std::int64_t c = 0; c < width; ++c) {
        dot += static_cast<double>(value_at(b.q, (t * n_heads + h) * width + c)) *
               static_cast<double>(value_at(keys, s * width + c));
      }
      const double term =
          std::max(0.0, dot) * static_cast<double>(value_at(b.weights, t * n_heads + h));
      score += term, size += std::fabs(term) / 4;
    }
    return {score, size};
  }
};

std::string describe(const IndexCase& c, DType dtype, KvRowKind kind) {
  return fmt::format("{} heads of {} {}, keys {}, ratio {}, topk {}, {} sequences", c.n_heads,
                     c.width, to_string(dtype), name_of(kind), c.ratio, c.topk, c.sequences.size());
}

const IndexCase kCases[] = {
    {1, 32, 4, 1, {{0, 9}}},                       // one entry of one or two
    {5, 32, 4, 3, {{0, 40}, {7, 1}}},              // no tensor-core shape
    {8, 64, 4, 64, {{0, 300}, {900, 2}, {2, 1}}},  // the small training model
    {33, 128, 3, 8, {{0, 131}}},                   // a head past a group, odd ratio
    {64, 128, 4, 512, {{8001, 3}, {100, 2}}},      // V4-Flash, decode
    {64, 128, 4, 16, {{1020, 70}}},                // prefill: several queries an item
    {64, 128, 4, 1024, {{5000, 1}}},               // V4-Pro
    {7, 96, 2, 20, {{100, 20}}},                   // a width that is no power of two
};

// Where sums are exact the lists are equal, ties and all.
TEST_F(CudaIndexer, ListsWhatTheCpuListsWhenScoresAreExact) {
  for (const IndexCase& c : kCases) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      for (const KvRowKind kind : {KvRowKind::fp4, KvRowKind::f32}) {
        const IndexBatch b = make(c, dtype, kind, true);
        expect_same_bytes(on_gpu(b), on_cpu(b), describe(c, dtype, kind));
      }
    }
  }
}

TEST_F(CudaIndexer, ListsTheBest) {
  for (const IndexCase& c : kCases) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      for (const KvRowKind kind : {KvRowKind::fp4, KvRowKind::f32}) {
        const IndexBatch b = make(c, dtype, kind, false);
        expect_as_good(b, on_gpu(b), on_cpu(b), describe(c, dtype, kind));
      }
    }
  }
}

// More entries than one block selects from: a cluster does.
TEST_F(CudaIndexer, SelectsFromManyEntries) {
  const IndexCase c{4, 64, 1, 512, {{40'000, 2}, {16'383, 1}, {16'384, 1}, {20'001, 1}}};
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const IndexBatch b = make(c, dtype, KvRowKind::fp4, true);
    expect_same_bytes(on_gpu(b), on_cpu(b), describe(c, dtype, KvRowKind::fp4));
  }
}

// Shares that, with what the kernel itself keeps, are just more than the shared memory that a block
// gets unasked: 48 KiB of f32 keys in one block, of bf16 keys in each of a cluster.
TEST_F(CudaIndexer, SelectsWhereSharedMemoryRunsOut) {
  for (const auto& [dtype, n] : {std::pair{DType::f32, std::int64_t{11'900}},
                                 {DType::f32, 12'280},
                                 {DType::f32, 97'000},
                                 {DType::bf16, 195'000},
                                 {DType::bf16, 196'500}}) {
    const IndexCase c{1, 64, 1, 64, {{n, 1}}};
    const IndexBatch b = make(c, dtype, KvRowKind::fp4, true);
    expect_same_bytes(on_gpu(b), on_cpu(b), describe(c, dtype, KvRowKind::fp4));
  }
}

TEST_F(CudaIndexer, ATokenDoesNotKnowItsBatch) {
  const IndexCase cases[] = {{64, 128, 4, 32, {{0, 300}, {2000, 40}, {77, 1}, {9000, 1}}},
                             {6, 32, 4, 9, {{0, 64}, {200, 1}}}};
  for (const IndexCase& c : cases) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      const IndexBatch b = make(c, dtype, KvRowKind::fp4, false);
      const Tensor whole = on_gpu(b);
      for (std::size_t i = 0; i < b.begins.size(); ++i) {
        const std::int64_t n = c.sequences[i].second;
        for (std::int64_t t = 0; t < n; t += 13) {
          for (const std::int64_t k : {std::int64_t{1}, std::min<std::int64_t>(13, n - t)}) {
            expect_same_bytes(part_on_gpu(b, i, t, k), rows_of(whole, b.begins[i] + t, k),
                              fmt::format("{}, sequence {}, tokens {} to {}",
                                          describe(c, dtype, KvRowKind::fp4), i, t, t + k));
          }
        }
      }
    }
  }
}

// Scores of so many queries take several passes.
TEST_F(CudaIndexer, ManyQueriesOverALongHistory) {
  const std::int64_t n_keys = 262'144, n = 140, topk = 512, ratio = 4;
  PagedStore keys = paged_store({KvRowKind::fp4, 64, 0}, n_keys, 4096);
  std::uniform_int_distribution<int> scale(124, 130);
  for (std::size_t i = 0; i + 4 <= keys.host.nbytes(); i += 4) {
    const auto word = static_cast<std::uint32_t>(rng()());
    std::memcpy(keys.host.bytes() + i, &word, 4);
  }
  for (std::int64_t s = 0; s < n_keys; ++s) {
    for (int k = 0; k < 2; ++k) keys.on_host().scale(s)[k] = static_cast<std::byte>(scale(rng()));
  }
  send(keys);
  const Tensor q = random({n, 8, 64}, DType::bf16), weights = random({n, 8}, DType::bf16);
  run_cpu(kFakeQuantizeFp4, DType::bf16, {.x = flat(q)});
  const Tensor dq = to_device(q), dw = to_device(weights);
  const auto run = [&](std::int64_t from, std::int64_t count) {
    const Tensor selected = device_empty({count, topk}, DType::i32);
    const IndexSequence s{0, count, n_keys * ratio - n + from, keys.on_device()};
    run_gpu(kIndexTopk, DType::bf16,
            {.selected = selected,
             .q = dq.view().slice(from, from + count),
             .weights = dw.view().slice(from, from + count),
             .ratio = ratio,
             .sequences = {&s, 1}});
    return to_host(selected);
  };
  const Tensor whole = run(0, n);
  for (const std::int64_t t : {std::int64_t{0}, std::int64_t{127}, std::int64_t{128}, n - 1}) {
    expect_same_bytes(run(t, 1), rows_of(whole, t, 1), fmt::format("query {}", t));
  }
}

// The same additions and one rounding each: equal to the bit.
TEST_F(CudaIndexer, TurnsAndRoundsLikeTheCpu) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t width : {1, 2, 8, 16, 32, 64, 128, 256, 512, 1024}) {
      for (const std::int64_t n : {0, 1, 3, 67}) {
        const Tensor want = random({n, width}, dtype), got = to_device(want);
        run_cpu(kHadamard, dtype, {.x = want});
        run_gpu(kHadamard, dtype, {.x = got});
        expect_same_bytes(to_host(got), want, fmt::format("hadamard {} of {}", n, width));
      }
    }
    for (const auto& [n, width] : {std::pair{0, 128}, {1, 32}, {5, 96}, {331, 128}}) {
      const Tensor want = random({n, width}, dtype);
      for (std::int64_t i = 0; i < want.numel(); i += 3) {
        set(want, i,
            i % 2 == 0 ? -0.0f : std::ldexp(value_at(want, i), static_cast<int>(i % 40) - 30));
      }
      const Tensor got = to_device(want);
      run_cpu(kFakeQuantizeFp4, dtype, {.x = want});
      run_gpu(kFakeQuantizeFp4, dtype, {.x = got});
      expect_same_bytes(to_host(got), want, fmt::format("fp4 {} of {}", n, width));
    }
  }
  const Tensor x = to_device(random({1, 2048}, DType::f32));
  EXPECT_THROW(run_gpu(kHadamard, DType::f32, {.x = x}), Error);
}

}  // namespace
}  // namespace hadal::test
