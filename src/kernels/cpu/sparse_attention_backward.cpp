#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kv_rows.h"
#include "kernels/cpu/query_blocks.h"
#include "kernels/cpu/simd.h"
#include "kernels/sparse_attention.h"

namespace hadal::kernels::cpu {

namespace {

// From the scores s = q.k and d = do.k of one row to scale * dz in s and p in d.
HADAL_SIMD_CLONES void row_backward(float* s, float* d, std::int64_t n, float scale, float lse,
                                    float delta) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float p = exp_f32(s[j] * scale - lse);
    s[j] = scale * p * (d[j] - delta);
    d[j] = p;
  }
}
HADAL_SIMD_CLONES void masked_row_backward(float* s, float* d, const std::uint8_t* listed,
                                           std::int64_t n, float scale, float lse, float delta) {
  for (std::int64_t j = 0; j < n; ++j) {
    const float e = exp_f32(s[j] * scale - lse);
    const float p = listed[j] != 0 ? e : 0.0f;
    s[j] = listed[j] != 0 ? scale * p * (d[j] - delta) : 0.0f;
    d[j] = p;
  }
}

template <class T>
HADAL_SIMD_INLINE float dot_as(const float* x, const T* y, std::int64_t n) {
  return lane_sum(n, [&](std::int64_t i) { return x[i] * load(y[i]); });
}
HADAL_SIMD_CLONES float dot(const float* x, const float* y, std::int64_t n) {
  return dot_as(x, y, n);
}
HADAL_SIMD_CLONES float dot(const float* x, const bf16* y, std::int64_t n) {
  return dot_as(x, y, n);
}

// A run of keys and where its gradient goes.
struct KeyRun {
  MatrixView rows;
  MatrixView gradient;         // of the rows from `constant` on; no data: not wanted
  std::int64_t constant = 0;   // leading rows that want none
  float gradient_beta = 1.0f;  // what becomes of the gradient that is there
  float dq_beta = 1.0f;
};

// The same for all sequences of a call.
template <class T>
class SequenceBackward {
 public:
  SequenceBackward(ThreadPool& pool, const SparseAttentionBackwardArgs& a,
                   const AttentionSequence& s, const float* delta)
      : pool_(pool), a_(a), s_(s), delta_(delta), n_heads_(a.q.dim(1)), width_(a.q.dim(2)) {}

  void run() {
    const std::int64_t n_tokens = s_.end - s_.begin, all = visible(s_.end);
    const bool shared = !a_.selected || all <= a_.selected.dim(1);
    // The window's band wastes a block of queries on each side; rows are (query, head).
    const std::int64_t block =
        std::clamp<std::int64_t>(std::min(a_.window / 2, 2048 / n_heads_), 16, 64);
    static thread_local std::vector<float> window_rows, entry_rows;
    decode_window(window_rows);
    decode_entries(entry_rows, all);
    for (std::int64_t i0 = 0; i0 < n_tokens; i0 += block) {
      const std::int64_t i1 = std::min(n_tokens, i0 + block);
      static thread_local std::vector<float> stacked;
      stack_queries(s_.begin + i0, s_.begin + i1, stacked);
      window_part(i0, i1, stacked.data(), window_rows.data());
      if (shared) entries_part(i0, i1, stacked.data(), entry_rows.data());
    }
    if (!shared) listed_part(entry_rows.data());
  }

 private:
  // Entries that a query before row `end` sees.
  [[nodiscard]] std::int64_t visible(std::int64_t end) const {
    return a_.ratio == 0 ? 0 : (s_.start + end - s_.begin) / a_.ratio;
  }

  void decode_window(std::vector<float>& rows) {
    first_ = std::max<std::int64_t>(0, s_.start - (a_.window - 1));
    const std::int64_t history = s_.start - first_, n = history + s_.end - s_.begin;
    rows.resize(static_cast<std::size_t>(n * width_));
    pool_.parallel_for(n, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        if (i < history)
          decode_row(s_.window, (first_ + i) % s_.ring_rows, rows.data() + i * width_);
        else
          decode_row(a_.new_rows, s_.begin + i - history, rows.data() + i * width_);
      }
    });
  }
  void decode_entries(std::vector<float>& rows, std::int64_t n) {
    rows.resize(static_cast<std::size_t>(n * width_));
    pool_.parallel_for(n, 64, [&](std::int64_t begin, std::int64_t end) {
      decode_rows(s_.entries, begin, end - begin, rows.data() + begin * width_);
    });
  }

  // q above do, so that one product gives both scores, and another both parts of a key's gradient.
  void stack_queries(std::int64_t t0, std::int64_t t1, std::vector<float>& out) const {
    const std::int64_t n = (t1 - t0) * n_heads_ * width_, begin = t0 * n_heads_ * width_;
    out.resize(static_cast<std::size_t>(2 * n));
    const T* q = a_.q.data<const T>() + begin;
    for (std::int64_t i = 0; i < n; ++i) out[static_cast<std::size_t>(i)] = load(q[i]);
    std::copy_n(a_.d_o.data<const float>() + begin, n, out.data() + n);
  }

  // The queries [t0, t1) against one run. in_row(query, s, d) turns a row's two scores into
  // scale * dz and p, zeros where the query does not look.
  template <class RowFn>
  void attend(std::int64_t t0, std::int64_t t1, float* stacked, const KeyRun& keys,
              RowFn&& in_row) const {
    static thread_local std::vector<float> buffer;
    const std::int64_t m = (t1 - t0) * n_heads_, n = keys.rows.rows;
    buffer.resize(static_cast<std::size_t>(2 * m * n));
    float* out = buffer.data();
    const MatrixView scores{out, 2 * m, n, n}, queries{stacked, 2 * m, width_, width_};
    gemm(pool_, {.c = scores, .a = queries, .b = keys.rows, .transpose_b = Transposed::yes});
    pool_.parallel_for(m, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t row = t0 * n_heads_ + r;
        in_row(r / n_heads_, out + r * n, out + (m + r) * n,
               a_.log_sum_exp.data<const float>()[row], delta_[row]);
      }
    });
    std::vector<GemmProblem> problems;
    if (a_.dq) {
      float* dq = a_.dq.data<float>() + t0 * n_heads_ * width_;
      problems.push_back({.c = {dq, m, width_, width_},
                          .a = scores.row_range(0, m),
                          .b = keys.rows,
                          .beta = keys.dq_beta});
    }
    if (keys.gradient.data != nullptr) {
      problems.push_back({.c = keys.gradient,
                          .a = scores.col_range(keys.constant, n),
                          .b = queries,
                          .transpose_a = Transposed::yes,
                          .beta = keys.gradient_beta});
    }
    gemm_batch(pool_, problems);
  }

  // Zeros outside [begin, end) of a row of n.
  void in_interval(std::int64_t begin, std::int64_t end, std::int64_t n, float* s, float* d,
                   float lse, float delta) const {
    for (float* row : {s, d}) {
      std::fill(row, row + begin, 0.0f);
      std::fill(row + end, row + n, 0.0f);
    }
    row_backward(s + begin, d + begin, end - begin, a_.softmax_scale, lse, delta);
  }

  void window_part(std::int64_t i0, std::int64_t i1, float* stacked, float* rows) const {
    const auto oldest = [&](std::int64_t i) {
      return std::max<std::int64_t>(0, s_.start + i - (a_.window - 1));
    };
    const std::int64_t base = oldest(i0), n = s_.start + i1 - base;
    KeyRun keys{.rows = {rows + (base - first_) * width_, n, width_, width_},
                .gradient = {},
                .constant = std::clamp<std::int64_t>(s_.start - base, 0, n),
                .dq_beta = 0.0f};
    if (a_.drows) {
      const std::int64_t row = s_.begin + base + keys.constant - s_.start;
      keys.gradient = {a_.drows.data<float>() + row * width_, n - keys.constant, width_, width_};
    }
    attend(s_.begin + i0, s_.begin + i1, stacked, keys,
           [&](std::int64_t i, float* s, float* d, float lse, float delta) {
             in_interval(oldest(i0 + i) - base, s_.start + i0 + i + 1 - base, n, s, d, lse, delta);
           });
  }

  // All visible entries, a tile at a time.
  void entries_part(std::int64_t i0, std::int64_t i1, float* stacked, float* rows) const {
    const std::int64_t all = visible(s_.begin + i1);
    for (std::int64_t e0 = 0; e0 < all; e0 += kEntryTile) {
      const std::int64_t e1 = std::min(all, e0 + kEntryTile), n = e1 - e0;
      KeyRun keys{.rows = {rows + e0 * width_, n, width_, width_},
                  .gradient = {},
                  .constant = std::clamp<std::int64_t>(s_.added.first - e0, 0, n)};
      if (a_.dentries && keys.constant < n) {
        const std::int64_t row = s_.added.row + e0 + keys.constant - s_.added.first;
        keys.gradient = {a_.dentries.data<float>() + row * width_, n - keys.constant, width_,
                         width_};
      }
      attend(s_.begin + i0, s_.begin + i1, stacked, keys,
             [&](std::int64_t i, float* s, float* d, float lse, float delta) {
               const std::int64_t seen = visible(s_.begin + i0 + i + 1) - e0;
               in_interval(0, std::clamp<std::int64_t>(seen, 0, n), n, s, d, lse, delta);
             });
    }
  }

  // The entries on each query's list.
  void listed_part(const float* rows) const {
    float* gradient = a_.dentries ? a_.dentries.data<float>() + s_.added.row * width_ : nullptr;
    for (std::int64_t t0 = s_.begin; t0 < s_.end; t0 += kListedQueries) {
      const std::vector<QueryBlock> blocks =
          blocks_of_lists(a_.selected, t0, std::min(s_.end, t0 + kListedQueries), n_heads_);
      add_block_gradients(
          pool_, blocks, width_, s_.added.first, gradient,
          [&](const QueryBlock& block, float* dkeys) { listed_block(block, rows, dkeys); });
    }
  }
  void listed_block(const QueryBlock& block, const float* rows, float* dkeys) const {
    const std::int64_t n = block.n_entries();
    if (n == 0) return;
    static thread_local std::vector<float> stacked, gathered;
    stack_queries(block.begin, block.end, stacked);
    gathered.resize(static_cast<std::size_t>(n * width_));
    gather_entries(block, rows, width_, gathered.data());
    const KeyRun keys{.rows = {gathered.data(), n, width_, width_},
                      .gradient = {dkeys, n, width_, width_},
                      .gradient_beta = 0.0f};
    attend(block.begin, block.end, stacked.data(), keys,
           [&](std::int64_t i, float* s, float* d, float lse, float delta) {
             masked_row_backward(s, d, block.listed.data() + i * n, n, a_.softmax_scale, lse,
                                 delta);
           });
  }

  ThreadPool& pool_;
  const SparseAttentionBackwardArgs& a_;
  const AttentionSequence& s_;
  const float* delta_;  // do . o of every (token, head)
  std::int64_t n_heads_, width_;
  std::int64_t first_ = 0;  // position of the first decoded window row
};

void clear(const TensorView& x) {
  if (x) std::memset(x.bytes(), 0, x.nbytes());
}

// Tokens in order for every head.
void add_sink_gradients(const SparseAttentionBackwardArgs& a, const float* delta) {
  const std::int64_t n_tokens = a.q.dim(0), n_heads = a.q.dim(1);
  const auto* sinks = a.sinks.data<const float>();
  const auto* lse = a.log_sum_exp.data<const float>();
  std::vector<double> sums(static_cast<std::size_t>(n_heads), 0.0);
  for (std::int64_t t = 0; t < n_tokens; ++t) {
    for (std::int64_t h = 0; h < n_heads; ++h) {
      const std::int64_t i = t * n_heads + h;
      sums[static_cast<std::size_t>(h)] -=
          static_cast<double>(exp_f32(sinks[h] - lse[i])) * static_cast<double>(delta[i]);
    }
  }
  auto* dsinks = a.dsinks.data<float>();
  for (std::int64_t h = 0; h < n_heads; ++h) {
    dsinks[h] += static_cast<float>(sums[static_cast<std::size_t>(h)]);
  }
}

}  // namespace

void sparse_attention_backward(Stream& stream, const SparseAttentionBackwardArgs& a) {
  const std::int64_t n_heads = a.q.dim(1), width = a.q.dim(2), n_rows = a.q.dim(0) * n_heads;
  clear(a.drows);
  clear(a.dentries);
  if (n_rows == 0) return;
  ThreadPool& pool = stream.pool();
  dispatch_activation(a.q.dtype(), [&]<class T>() {
    std::vector<float> delta(static_cast<std::size_t>(n_rows));
    pool.parallel_for(n_rows, 256, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        delta[static_cast<std::size_t>(r)] =
            dot(a.d_o.data<const float>() + r * width, a.o.data<const T>() + r * width, width);
      }
    });
    if (a.dsinks) add_sink_gradients(a, delta.data());
    auto run = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const AttentionSequence& s = a.sequences[static_cast<std::size_t>(i)];
        if (s.begin < s.end) SequenceBackward<T>(pool, a, s, delta.data()).run();
      }
    };
    // Sequences touch different rows. Many of them go to the threads whole, few share the threads
    // inside: the bits are the same.
    const auto n = static_cast<std::int64_t>(a.sequences.size());
    if (n >= 2 * pool.size())
      pool.parallel_for(n, 1, run);
    else
      run(0, n);
  });
}

}  // namespace hadal::kernels::cpu
