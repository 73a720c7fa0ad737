#include "kernels/hyper_connection.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/simd.h"

namespace hadal {

void hc_split(const float* mixes, const float* scale, const float* base, int n, int sinkhorn_iters,
              float eps, float* pre, float* post, float* comb) {
  using kernels::cpu::sigmoid_f32;
  for (int j = 0; j < n; ++j) pre[j] = sigmoid_f32(mixes[j] * scale[0] + base[j]) + eps;
  for (int j = 0; j < n; ++j) {
    post[j] = 2.0f * sigmoid_f32(mixes[n + j] * scale[1] + base[n + j]);
  }
  for (int j = 0; j < n; ++j) {  // row softmax
    float* row = comb + j * n;
    float peak = -INFINITY, sum = 0.0f;
    for (int k = 0; k < n; ++k) {
      const int i = 2 * n + j * n + k;
      row[k] = mixes[i] * scale[2] + base[i];
      peak = std::max(peak, row[k]);
    }
    for (int k = 0; k < n; ++k) sum += row[k] = std::exp(row[k] - peak);
    for (int k = 0; k < n; ++k) row[k] = row[k] / sum + eps;
  }
  const auto normalise_columns = [&] {
    for (int k = 0; k < n; ++k) {
      float sum = 0.0f;
      for (int j = 0; j < n; ++j) sum += comb[j * n + k];
      for (int j = 0; j < n; ++j) comb[j * n + k] /= sum + eps;
    }
  };
  normalise_columns();
  for (int iteration = 1; iteration < sinkhorn_iters; ++iteration) {
    for (int j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < n; ++k) sum += comb[j * n + k];
      for (int k = 0; k < n; ++k) comb[j * n + k] /= sum + eps;
    }
    normalise_columns();
  }
}

namespace kernels::cpu {

namespace {

template <class T>
HADAL_SIMD_INLINE float mean_square_scale_as(const T* u, std::int64_t n, float eps) {
  const float sum = lane_sum(n, [&](std::int64_t i) { return load(u[i]) * load(u[i]); });
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}
HADAL_SIMD_CLONES float mean_square_scale(const float* u, std::int64_t n, float eps) {
  return mean_square_scale_as(u, n, eps);
}
HADAL_SIMD_CLONES float mean_square_scale(const bf16* u, std::int64_t n, float eps) {
  return mean_square_scale_as(u, n, eps);
}

constexpr std::int64_t kBlock = 64;  // columns whose sums stay in registers

// sum[i] = sum_j weights[j*stride] * streams[j, i] over a block of columns, j ascending.
template <class T>
HADAL_SIMD_INLINE void mix_block(float* sum, const T* streams, const float* weights, int stride,
                                 int n, std::int64_t hidden, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) sum[i] = weights[0] * load(streams[i]);
  for (int j = 1; j < n; ++j) {
    const T* row = streams + j * hidden;
    const float weight = weights[j * stride];
    for (std::int64_t i = 0; i < width; ++i) sum[i] += weight * load(row[i]);
  }
}

// x[i] = sum_j pre[j] * streams[j, i].
template <class T>
HADAL_SIMD_INLINE void collapse_as(T* x, const T* streams, const float* pre, int n,
                                   std::int64_t hidden) {
  float sum[kBlock];
  for (std::int64_t c = 0; c < hidden; c += kBlock) {
    const std::int64_t width = std::min(kBlock, hidden - c);
    mix_block(sum, streams + c, pre, 1, n, hidden, width);
    for (std::int64_t i = 0; i < width; ++i) put(x[c + i], sum[i]);
  }
}
HADAL_SIMD_CLONES void collapse(float* x, const float* streams, const float* pre, int n,
                                std::int64_t hidden) {
  collapse_as(x, streams, pre, n, hidden);
}
HADAL_SIMD_CLONES void collapse(bf16* x, const bf16* streams, const float* pre, int n,
                                std::int64_t hidden) {
  collapse_as(x, streams, pre, n, hidden);
}

template <class T>
HADAL_SIMD_INLINE void spread_as(T* y, const T* a, const T* streams, const float* post,
                                 const float* comb, int n, std::int64_t hidden) {
  float sum[kBlock];
  for (int k = 0; k < n; ++k) {
    T* out = y + k * hidden;
    for (std::int64_t c = 0; c < hidden; c += kBlock) {
      const std::int64_t width = std::min(kBlock, hidden - c);
      mix_block(sum, streams + c, comb + k, n, n, hidden, width);
      for (std::int64_t i = 0; i < width; ++i) put(out[c + i], post[k] * load(a[c + i]) + sum[i]);
    }
  }
}
HADAL_SIMD_CLONES void spread(float* y, const float* a, const float* streams, const float* post,
                              const float* comb, int n, std::int64_t hidden) {
  spread_as(y, a, streams, post, comb, n, hidden);
}
HADAL_SIMD_CLONES void spread(bf16* y, const bf16* a, const bf16* streams, const float* post,
                              const float* comb, int n, std::int64_t hidden) {
  spread_as(y, a, streams, post, comb, n, hidden);
}

// mixes[t, :] = streams[t, :] . fn^T, before the RMS factor.
void project(Stream& stream, const TensorView& streams, const QuantTensor& fn,
             std::vector<float>& mixes) {
  const std::int64_t n_tokens = streams.dim(0), n_mixes = fn.rows();
  thread_local ActivationPanel panel;
  const WeightRows rows = rows_of(fn);
  panel.prepare(stream.pool(), streams.reshape({n_tokens, fn.cols()}), rows, ActivationQuant::none);
  mixes.resize(static_cast<std::size_t>(n_tokens * n_mixes));
  const ActivationPanel& shared = panel;
  // A released model's projection is worth two threads; a small one is done before they are awake.
  const std::int64_t grain = fn.cols() >= 8192 ? 6 : n_mixes;
  if (n_tokens == 1) {
    stream.pool().parallel_for(n_mixes, grain, [&](std::int64_t n0, std::int64_t n1) {
      dot_rows(shared, rows, n0, n1, mixes.data() + n0, n_mixes);
    });
  } else {
    stream.pool().parallel_for(n_tokens, 16, [&](std::int64_t m0, std::int64_t m1) {
      dot_rows(shared, m0, m1, rows, 0, n_mixes, mixes.data() + m0 * n_mixes, n_mixes);
    });
  }
}

constexpr int kMaxStreams = 16;

void save_row(const HcSaved& saved, std::int64_t t, const float* mixes, std::int64_t n_mixes,
              float rms) {
  if (!saved.mixes) return;
  std::copy_n(mixes, n_mixes, saved.mixes.data<float>() + t * n_mixes);
  saved.rms.data<float>()[t] = rms;
}

}  // namespace

void hc_pre(Stream& stream, const HcPreArgs& a) {
  const std::int64_t hidden = a.streams.dim(2);
  const int n = static_cast<int>(a.streams.dim(1));
  HADAL_CHECK(n <= kMaxStreams);
  const std::int64_t n_mixes = (2 + n) * n;
  thread_local std::vector<float> mixes;
  project(stream, a.streams, a.weights->fn, mixes);
  float* all_mixes = mixes.data();
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* streams = a.streams.data<const T>() + t * n * hidden;
        const float rms = mean_square_scale(streams, n * hidden, a.norm_eps);
        float* mix = all_mixes + t * n_mixes;
        for (std::int64_t i = 0; i < n_mixes; ++i) mix[i] *= rms;
        save_row(a.saved, t, mix, n_mixes, rms);
        std::array<float, kMaxStreams> pre;
        hc_split(mix, a.weights->scale.data<const float>(), a.weights->base.data<const float>(), n,
                 a.sinkhorn_iters, a.hc_eps, pre.data(), a.post.data<float>() + t * n,
                 a.comb.data<float>() + t * n * n);
        collapse(a.x.data<T>() + t * hidden, streams, pre.data(), n, hidden);
      }
    });
  });
}

void hc_post(Stream& stream, const HcPostArgs& a) {
  const std::int64_t hidden = a.streams.dim(2);
  const int n = static_cast<int>(a.streams.dim(1));
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.y.dim(0), 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        spread(a.y.data<T>() + t * n * hidden, a.a.data<const T>() + t * hidden,
               a.streams.data<const T>() + t * n * hidden, a.post.data<const float>() + t * n,
               a.comb.data<const float>() + t * n * n, n, hidden);
      }
    });
  });
}

void hc_head(Stream& stream, const HcHeadArgs& a) {
  const std::int64_t hidden = a.streams.dim(2);
  const int n = static_cast<int>(a.streams.dim(1));
  HADAL_CHECK(n <= kMaxStreams);
  thread_local std::vector<float> mixes;
  project(stream, a.streams, a.weights->fn, mixes);
  float* all_mixes = mixes.data();
  const auto* scale = a.weights->scale.data<const float>();
  const auto* base = a.weights->base.data<const float>();
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* streams = a.streams.data<const T>() + t * n * hidden;
        const float rms = mean_square_scale(streams, n * hidden, a.norm_eps);
        float* mix = all_mixes + t * n;
        for (int j = 0; j < n; ++j) mix[j] *= rms;
        save_row(a.saved, t, mix, n, rms);
        std::array<float, kMaxStreams> pre;
        for (int j = 0; j < n; ++j) {
          pre[static_cast<std::size_t>(j)] = sigmoid_f32(mix[j] * scale[0] + base[j]) + a.hc_eps;
        }
        collapse(a.x.data<T>() + t * hidden, streams, pre.data(), n, hidden);
      }
    });
  });
}

}  // namespace kernels::cpu

}  // namespace hadal
