#include "kernels/hyper_connection.h"

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
HADAL_SIMD_CLONES float mean_square_scale(const T* u, std::int64_t n, float eps) {
  const float sum = lane_sum(n, [&](std::int64_t i) { return load(u[i]) * load(u[i]); });
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}
template float mean_square_scale<float>(const float*, std::int64_t, float);
template float mean_square_scale<bf16>(const bf16*, std::int64_t, float);

// x[i] = sum_j pre[j] * streams[j, i], j ascending.
template <class T>
HADAL_SIMD_CLONES void collapse(T* x, const T* streams, const float* pre, int n,
                                std::int64_t hidden) {
  for (std::int64_t i = 0; i < hidden; ++i) {
    float sum = pre[0] * load(streams[i]);
    for (int j = 1; j < n; ++j) sum += pre[j] * load(streams[j * hidden + i]);
    x[i] = store<T>(sum);
  }
}
template void collapse<float>(float*, const float*, const float*, int, std::int64_t);
template void collapse<bf16>(bf16*, const bf16*, const float*, int, std::int64_t);

template <class T>
HADAL_SIMD_CLONES void spread(T* y, const T* a, const T* streams, const float* post,
                              const float* comb, int n, std::int64_t hidden) {
  for (int k = 0; k < n; ++k) {
    for (std::int64_t i = 0; i < hidden; ++i) {
      float sum = comb[k] * load(streams[i]);
      for (int j = 1; j < n; ++j) sum += comb[j * n + k] * load(streams[j * hidden + i]);
      y[k * hidden + i] = store<T>(post[k] * load(a[i]) + sum);
    }
  }
}
template void spread<float>(float*, const float*, const float*, const float*, const float*, int,
                            std::int64_t);
template void spread<bf16>(bf16*, const bf16*, const bf16*, const float*, const float*, int,
                           std::int64_t);

// mixes[t, :] = streams[t, :] . fn^T, before the RMS factor.
void project(Stream& stream, const TensorView& streams, const QuantTensor& fn,
             std::vector<float>& mixes) {
  const std::int64_t n_tokens = streams.dim(0), n_mixes = fn.rows();
  thread_local ActivationPanel panel;
  const WeightRows rows = rows_of(fn);
  panel.prepare(stream.pool(), streams.reshape({n_tokens, fn.cols()}), rows, ActivationQuant::none);
  mixes.resize(static_cast<std::size_t>(n_tokens * n_mixes));
  const ActivationPanel& shared = panel;
  const std::int64_t grain = n_tokens == 1 ? 4 : n_mixes;
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
        const float rms = mean_square_scale<T>(streams, n * hidden, a.norm_eps);
        float* mix = all_mixes + t * n_mixes;
        for (std::int64_t i = 0; i < n_mixes; ++i) mix[i] *= rms;
        std::array<float, kMaxStreams> pre;
        hc_split(mix, a.weights->scale.data<const float>(), a.weights->base.data<const float>(), n,
                 a.sinkhorn_iters, a.hc_eps, pre.data(), a.post.data<float>() + t * n,
                 a.comb.data<float>() + t * n * n);
        collapse<T>(a.x.data<T>() + t * hidden, streams, pre.data(), n, hidden);
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
        spread<T>(a.y.data<T>() + t * n * hidden, a.a.data<const T>() + t * hidden,
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
  const float* all_mixes = mixes.data();
  const auto* scale = a.weights->scale.data<const float>();
  const auto* base = a.weights->base.data<const float>();
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* streams = a.streams.data<const T>() + t * n * hidden;
        const float rms = mean_square_scale<T>(streams, n * hidden, a.norm_eps);
        std::array<float, kMaxStreams> pre;
        for (int j = 0; j < n; ++j) {
          pre[static_cast<std::size_t>(j)] =
              sigmoid_f32(all_mixes[t * n + j] * rms * scale[0] + base[j]) + a.hc_eps;
        }
        collapse<T>(a.x.data<T>() + t * hidden, streams, pre.data(), n, hidden);
      }
    });
  });
}

}  // namespace kernels::cpu

}  // namespace hadal
