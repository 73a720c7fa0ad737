#include "kernels/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/attention_values.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/kv_rows.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// A run of decoded KV rows.
template <class T>
struct RowRun {
  const T* rows = nullptr;
  std::int64_t n = 0;
};

template <class T>
WeightRows keys_of(const RowRun<T>& run, std::int64_t width) {
  WeightRows rows{};
  rows.dtype = DTypeOf<T>::value;
  rows.data = reinterpret_cast<const std::byte*>(run.rows);
  rows.rows = run.n;
  rows.cols = width;
  return rows;
}

// Turns scores into probabilities in place and returns the denominator, sink included.
template <class T>
HADAL_SIMD_INLINE float softmax_with_sink_as(float* z, std::int64_t n, float scale, float sink) {
  float peak = z[0] * scale;
  for (std::int64_t j = 0; j < n; ++j) {
    z[j] *= scale;
    peak = z[j] > peak ? z[j] : peak;
  }
  for (std::int64_t j = 0; j < n; ++j) z[j] = exp_f32(z[j] - peak);
  const float sum = lane_sum(n, [&](std::int64_t j) { return z[j]; });
  for (std::int64_t j = 0; j < n; ++j) z[j] = rounded<T>(z[j]);
  return sum + exp_f32(sink - peak);
}
HADAL_SIMD_CLONES float softmax_with_sink(float, float* z, std::int64_t n, float scale,
                                          float sink) {
  return softmax_with_sink_as<float>(z, n, scale, sink);
}
HADAL_SIMD_CLONES float softmax_with_sink(bf16, float* z, std::int64_t n, float scale, float sink) {
  return softmax_with_sink_as<bf16>(z, n, scale, sink);
}

// One query, a block of heads: scores against both runs, softmax, values.
template <class T>
void attend(const SparseAttentionArgs& a, const ActivationPanel& queries, std::int64_t t,
            std::int64_t h0, std::int64_t h1, const RowRun<T>& window, const RowRun<T>& entries) {
  const std::int64_t n_heads = a.q.dim(1), width = a.q.dim(2);
  const std::int64_t n = window.n + entries.n;
  thread_local std::vector<float> scores, values;
  scores.resize(static_cast<std::size_t>((h1 - h0) * n));
  values.assign(static_cast<std::size_t>((h1 - h0) * width), 0.0f);
  const std::int64_t m0 = t * n_heads + h0, m1 = t * n_heads + h1;
  dot_rows(queries, m0, m1, keys_of(window, width), 0, window.n, scores.data(), n);
  if (entries.n > 0) {
    dot_rows(queries, m0, m1, keys_of(entries, width), 0, entries.n, scores.data() + window.n, n);
  }
  float inverse[64];
  const auto* sinks = a.sinks.data<const float>();
  for (std::int64_t h = h0; h < h1; ++h) {
    float* z = scores.data() + (h - h0) * n;
    // The same peak that the softmax finds: rounding is monotonic.
    const float peak = a.log_sum_exp ? *std::max_element(z, z + n) * a.softmax_scale : 0.0f;
    inverse[h - h0] = softmax_with_sink(T{}, z, n, a.softmax_scale, sinks[h]);
    if (a.log_sum_exp) {
      a.log_sum_exp.data<float>()[t * n_heads + h] = peak + std::log(inverse[h - h0]);
    }
  }
  accumulate_values(values.data(), scores.data(), n, h1 - h0, window.rows, window.n, width);
  accumulate_values(values.data(), scores.data() + window.n, n, h1 - h0, entries.rows, entries.n,
                    width);
  for (std::int64_t h = h0; h < h1; ++h) {
    T* o = a.o.data<T>() + (t * n_heads + h) * width;
    const float* v = values.data() + (h - h0) * width;
    for (std::int64_t c = 0; c < width; ++c) put(o[c], v[c] / inverse[h - h0]);
  }
}

constexpr std::int64_t kQueryBlock = 16;  // queries whose selected rows are decoded together
constexpr std::int64_t kHeadBlock = 16;

template <class T>
class SequenceAttention {
 public:
  SequenceAttention(Stream& stream, const SparseAttentionArgs& a, const AttentionSequence& s,
                    const ActivationPanel& queries)
      : stream_(stream), a_(a), s_(s), queries_(queries), width_(a.q.dim(2)) {}

  void run() {
    decode_window();
    const std::int64_t n_tokens = s_.end - s_.begin;
    const std::int64_t all = visible(s_.end - 1);
    // A list that holds every visible entry needs no gathering per query.
    const bool shared = !a_.selected || all <= a_.selected.dim(1);
    if (shared) decode_shared_entries(all);
    for (std::int64_t i0 = 0; i0 < n_tokens; i0 += kQueryBlock) {
      const std::int64_t i1 = std::min(n_tokens, i0 + kQueryBlock);
      if (!shared) gather_selected(i0, i1);
      attend_block(i0, i1, shared);
    }
  }

 private:
  [[nodiscard]] std::int64_t visible(std::int64_t t) const {
    return a_.ratio == 0 ? 0 : (s_.start + t - s_.begin + 1) / a_.ratio;
  }

  // Positions [first_, start + n_tokens), oldest first, so that every query's window is a slice.
  void decode_window() {
    first_ = std::max<std::int64_t>(0, s_.start - (a_.window - 1));
    const std::int64_t history = s_.start - first_, n_tokens = s_.end - s_.begin;
    window().resize(static_cast<std::size_t>((history + n_tokens) * width_));
    T* out = window().data();
    stream_.pool().parallel_for(history + n_tokens, 32, [&](std::int64_t i0, std::int64_t i1) {
      for (std::int64_t i = i0; i < i1; ++i) {
        if (i < history)
          decode_row(s_.window, (first_ + i) % s_.ring_rows, out + i * width_);
        else
          decode_row(a_.new_rows, s_.begin + i - history, out + i * width_);
      }
    });
  }

  void decode_shared_entries(std::int64_t n) {
    entries().resize(static_cast<std::size_t>(n * width_));
    T* out = entries().data();
    stream_.pool().parallel_for(n, 32, [&](std::int64_t i0, std::int64_t i1) {
      decode_rows(s_.entries, i0, i1 - i0, out + i0 * width_);
    });
  }

  // Entries in the list of a query: up to the first -1.
  [[nodiscard]] std::int64_t n_selected(std::int64_t i) const {
    const std::int64_t topk = a_.selected.dim(1);
    const auto* list = a_.selected.data<const std::int32_t>() + (s_.begin + i) * topk;
    return std::find(list, list + topk, -1) - list;
  }

  void gather_selected(std::int64_t i0, std::int64_t i1) {
    const std::int64_t topk = a_.selected.dim(1);
    entries().resize(static_cast<std::size_t>((i1 - i0) * topk * width_));
    T* out = entries().data();
    const auto* selected = a_.selected.data<const std::int32_t>();
    stream_.pool().parallel_for((i1 - i0) * topk, 64, [&](std::int64_t k0, std::int64_t k1) {
      for (std::int64_t k = k0; k < k1; ++k) {
        const std::int32_t entry = selected[(s_.begin + i0) * topk + k];
        if (entry >= 0) decode_row(s_.entries, entry, out + k * width_);
      }
    });
  }

  void attend_block(std::int64_t i0, std::int64_t i1, bool shared) {
    const std::int64_t n_heads = a_.q.dim(1);
    const std::int64_t head_blocks = (n_heads + kHeadBlock - 1) / kHeadBlock;
    const T* window_rows = window().data();
    const T* entry_rows = entries().data();
    stream_.pool().parallel_for((i1 - i0) * head_blocks, 1, [&](std::int64_t k0, std::int64_t k1) {
      for (std::int64_t k = k0; k < k1; ++k) {
        const std::int64_t i = i0 + k / head_blocks, h0 = k % head_blocks * kHeadBlock;
        const std::int64_t position = s_.start + i;
        const std::int64_t oldest = std::max<std::int64_t>(0, position - (a_.window - 1));
        const RowRun<T> own{window_rows + (oldest - first_) * width_, position - oldest + 1};
        RowRun<T> compressed{entry_rows, visible(s_.begin + i)};
        if (!shared) {
          compressed = {entry_rows + (i - i0) * a_.selected.dim(1) * width_, n_selected(i)};
        }
        attend(a_, queries_, s_.begin + i, h0, std::min(n_heads, h0 + kHeadBlock), own, compressed);
      }
    });
  }

  // Scratch of the calling thread, kept between calls.
  static std::vector<T>& window() {
    thread_local std::vector<T> rows;
    return rows;
  }
  static std::vector<T>& entries() {
    thread_local std::vector<T> rows;
    return rows;
  }

  Stream& stream_;
  const SparseAttentionArgs& a_;
  const AttentionSequence& s_;
  const ActivationPanel& queries_;
  std::int64_t width_;
  std::int64_t first_ = 0;
};

}  // namespace

void sparse_attention(Stream& stream, const SparseAttentionArgs& a) {
  const std::int64_t n_tokens = a.q.dim(0), n_heads = a.q.dim(1), width = a.q.dim(2);
  if (n_tokens == 0) return;
  thread_local ActivationPanel panel;
  dispatch_activation(a.q.dtype(), [&]<class T>() {
    panel.prepare(stream.pool(), a.q.reshape({n_tokens * n_heads, width}),
                  keys_of(RowRun<T>{}, width), ActivationQuant::none);
    const ActivationPanel& queries = panel;
    for (const AttentionSequence& s : a.sequences) {
      if (s.begin < s.end) SequenceAttention<T>(stream, a, s, queries).run();
    }
  });
}

}  // namespace hadal::kernels::cpu
