#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/f32_rows.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"
#include "kernels/hyper_connection.h"

namespace hadal::kernels::cpu {

namespace {

constexpr int kMaxStreams = 16;

// Gates are scalar work, a dozen operations on a handful of numbers: sixteen tokens go side by
// side.
struct Lane {
  float v[kLanes];
};

HADAL_SIMD_INLINE void sigmoid(Lane& y, const Lane& x) {
  for (int l = 0; l < kLanes; ++l) y.v[l] = 1.0f / (1.0f + exp_f32(-x.v[l]));
}

// d: the gradient of comb, replaced by that of its logits. raw: the logits, destroyed.
// Forward keeps the sums that divided; backward multiplies by them, so that no matrix is kept.
HADAL_SIMD_CLONES void sinkhorn_backward(Lane* d, Lane* raw, Lane* sums, int n, int half_steps,
                                         float eps) {
  Lane softmax[kMaxStreams * kMaxStreams];
  Lane* m = raw;
  for (int j = 0; j < n; ++j) {
    Lane* row = m + j * n;
    Lane peak = row[0], sum = {};
    for (int k = 1; k < n; ++k) {
      for (int l = 0; l < kLanes; ++l) {
        peak.v[l] = row[k].v[l] > peak.v[l] ? row[k].v[l] : peak.v[l];
      }
    }
    for (int k = 0; k < n; ++k) {
      for (int l = 0; l < kLanes; ++l) row[k].v[l] = exp_f32(row[k].v[l] - peak.v[l]);
      for (int l = 0; l < kLanes; ++l) sum.v[l] += row[k].v[l];
    }
    for (int k = 0; k < n; ++k) {
      for (int l = 0; l < kLanes; ++l) softmax[j * n + k].v[l] = row[k].v[l] / sum.v[l];
      for (int l = 0; l < kLanes; ++l) row[k].v[l] = softmax[j * n + k].v[l] + eps;
    }
  }
  // Half steps alternate columns, rows, ..., columns; `across` steps along the line that is summed.
  for (int step = 0; step < half_steps; ++step) {
    const int across = step % 2 == 0 ? n : 1, along = n + 1 - across;
    for (int g = 0; g < n; ++g) {
      Lane* line = m + g * along;
      Lane& sum = sums[step * n + g];
      for (int l = 0; l < kLanes; ++l) sum.v[l] = eps;
      for (int i = 0; i < n; ++i) {
        for (int l = 0; l < kLanes; ++l) sum.v[l] += line[i * across].v[l];
      }
      for (int i = 0; i < n; ++i) {
        for (int l = 0; l < kLanes; ++l) line[i * across].v[l] /= sum.v[l];
      }
    }
  }
  for (int step = half_steps - 1; step >= 0; --step) {
    const int across = step % 2 == 0 ? n : 1, along = n + 1 - across;
    for (int g = 0; g < n; ++g) {
      Lane* line = m + g * along;
      Lane* dline = d + g * along;
      const Lane& sum = sums[step * n + g];
      Lane dot = {};
      for (int i = 0; i < n; ++i) {
        for (int l = 0; l < kLanes; ++l) dot.v[l] += dline[i * across].v[l] * line[i * across].v[l];
      }
      for (int i = 0; i < n; ++i) {
        for (int l = 0; l < kLanes; ++l) {
          dline[i * across].v[l] = (dline[i * across].v[l] - dot.v[l]) / sum.v[l];
          line[i * across].v[l] *= sum.v[l];
        }
      }
    }
  }
  for (int j = 0; j < n; ++j) {
    Lane dot = {};
    for (int k = j * n; k < (j + 1) * n; ++k) {
      for (int l = 0; l < kLanes; ++l) dot.v[l] += d[k].v[l] * softmax[k].v[l];
    }
    for (int k = j * n; k < (j + 1) * n; ++k) {
      for (int l = 0; l < kLanes; ++l) d[k].v[l] = softmax[k].v[l] * (d[k].v[l] - dot.v[l]);
    }
  }
}

// Sixteen tokens' gates. `d` comes in as the gradients of pre, post and comb and leaves as those of
// the mixes; `pre` leaves as the gates themselves.
struct GateLanes {
  Lane mix[(2 + kMaxStreams) * kMaxStreams], d[(2 + kMaxStreams) * kMaxStreams];
  Lane pre[kMaxStreams];
  Lane dot;  // sum over mixes of d * mix
};

HADAL_SIMD_CLONES void gates_backward(GateLanes& g, const float* scale, const float* base,
                                      float* dscale, float* dbase, Lane* raw, Lane* sums, int n,
                                      int n_mixes, int half_steps, float eps) {
  for (int i = 0; i < n_mixes; ++i) {
    const int gate = std::min(i / n, 2);
    for (int l = 0; l < kLanes; ++l) raw[i].v[l] = g.mix[i].v[l] * scale[gate] + base[i];
    if (gate == 2) continue;
    Lane s;
    sigmoid(s, raw[i]);
    const float factor = gate == 0 ? 1.0f : 2.0f;
    for (int l = 0; l < kLanes; ++l) g.d[i].v[l] *= factor * s.v[l] * (1.0f - s.v[l]);
    if (gate == 0) {
      for (int l = 0; l < kLanes; ++l) g.pre[i].v[l] = s.v[l] + eps;
    }
  }
  if (n_mixes > 2 * n) sinkhorn_backward(g.d + 2 * n, raw + 2 * n, sums, n, half_steps, eps);
  g.dot = {};
  Lane scale_sum[3] = {};
  for (int i = 0; i < n_mixes; ++i) {
    const int gate = std::min(i / n, 2);
    Lane draw = g.d[i];
    for (int l = 0; l < kLanes; ++l) {
      scale_sum[gate].v[l] += draw.v[l] * g.mix[i].v[l];
      g.d[i].v[l] = scale[gate] * draw.v[l];
      g.dot.v[l] += g.d[i].v[l] * g.mix[i].v[l];
    }
    dbase[i] += fold_lanes(draw.v);
  }
  for (int gate = 0; gate * n < n_mixes && gate < 3; ++gate) {
    dscale[gate] += fold_lanes(scale_sum[gate].v);
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

// dstream += pre * dx - pull * stream.
template <class T>
HADAL_SIMD_INLINE void add_direct_as(float* dstream, const float* dx, const T* stream, float pre,
                                     float pull, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) dstream[i] += pre * dx[i] - pull * load(stream[i]);
}
HADAL_SIMD_CLONES void add_direct(float* dstream, const float* dx, const float* stream, float pre,
                                  float pull, std::int64_t n) {
  add_direct_as(dstream, dx, stream, pre, pull, n);
}
HADAL_SIMD_CLONES void add_direct(float* dstream, const float* dx, const bf16* stream, float pre,
                                  float pull, std::int64_t n) {
  add_direct_as(dstream, dx, stream, pre, pull, n);
}

// Views carry no const: gemm reads a and b only.
MatrixView matrix(const float* data, std::int64_t rows, std::int64_t cols) {
  return {const_cast<float*>(data), rows, cols, cols};
}

// Tokens of one range, whose streams stay in the cache between the three times they are needed, and
// its own sums for scale and base.
constexpr std::int64_t kRange = 64;
// Tokens whose streams are widened to f32 at a time, for the gradient of fn.
constexpr std::int64_t kFnRows = 1024;

template <class T>
class GateBackward {
 public:
  GateBackward(const HcGateBackwardArgs& a, const float* fn, float* dmixes, float* partial)
      : a_(a),
        fn_(fn),
        dmixes_(dmixes),
        partial_(partial),
        n_(static_cast<int>(a.streams.dim(1))),
        n_mixes_(static_cast<int>(a.saved.mixes.dim(1))),
        hidden_(a.streams.dim(2)) {
    sums_.resize(static_cast<std::size_t>(half_steps() * n_));
  }

  // dmixes of the tokens [t0, t1), times their RMS factor, and everything that follows from them.
  void range(ThreadPool& pool, std::int64_t t0, std::int64_t t1) {
    std::array<float, kRange> pull;
    std::array<std::array<float, kMaxStreams>, kRange> pre;
    for (std::int64_t t = t0; t < t1; t += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, t1 - t));
      gather(t, count);
      const auto* w = a_.weights;
      float* partial = partial_ + t0 / kRange * (3 + n_mixes_);
      gates_backward(gates_, w->scale.template data<const float>(),
                     w->base.template data<const float>(), partial, partial + 3, raw_.data(),
                     sums_.data(), n_, n_mixes_, half_steps(), a_.hc_eps);
      for (int l = 0; l < count; ++l) {
        const float rms = a_.saved.rms.template data<const float>()[t + l];
        const auto i = static_cast<std::size_t>(t - t0 + l);
        pull[i] = rms * rms * gates_.dot.v[l] / static_cast<float>(n_ * hidden_);
        for (int j = 0; j < n_; ++j) pre[i][static_cast<std::size_t>(j)] = gates_.pre[j].v[l];
        float* dmix = dmixes_ + (t + l) * n_mixes_;
        for (int m = 0; m < n_mixes_; ++m) dmix[m] = rms * gates_.d[m].v[l];
      }
    }
    if (!a_.dstreams) return;
    const std::int64_t width = n_ * hidden_;
    auto* dstreams = a_.dstreams.template data<float>();
    gemm(pool, {.c = matrix(dstreams + t0 * width, t1 - t0, width),
                .a = matrix(dmixes_ + t0 * n_mixes_, t1 - t0, n_mixes_),
                .b = matrix(fn_, n_mixes_, width),
                .beta = 1.0f});
    for (std::int64_t t = t0; t < t1; ++t) {
      const auto i = static_cast<std::size_t>(t - t0);
      for (int j = 0; j < n_; ++j) {
        const std::int64_t at = t * width + j * hidden_;
        add_direct(dstreams + at, a_.dx.template data<const float>() + t * hidden_,
                   a_.streams.template data<const T>() + at, pre[i][static_cast<std::size_t>(j)],
                   pull[i], hidden_);
      }
    }
  }

 private:
  [[nodiscard]] int half_steps() const { return 2 * std::max(1, a_.sinkhorn_iters) - 1; }

  // Mixes and gradients of gates, one token a lane; zeros where there is none.
  void gather(std::int64_t t, int count) {
    if (count < kLanes) {
      std::fill_n(gates_.mix, n_mixes_, Lane{});
      std::fill_n(gates_.d, n_mixes_, Lane{});
    }
    for (int l = 0; l < count; ++l) {
      const std::int64_t token = t + l;
      const float* mixes = a_.saved.mixes.template data<const float>() + token * n_mixes_;
      for (int m = 0; m < n_mixes_; ++m) gates_.mix[m].v[l] = mixes[m];
      const float* dx = a_.dx.template data<const float>() + token * hidden_;
      const T* streams = a_.streams.template data<const T>() + token * n_ * hidden_;
      for (int j = 0; j < n_; ++j) gates_.d[j].v[l] = dot(dx, streams + j * hidden_, hidden_);
      if (!a_.dcomb) continue;
      const float* dpost = a_.dpost.template data<const float>() + token * n_;
      for (int j = 0; j < n_; ++j) gates_.d[n_ + j].v[l] = dpost[j];
      const float* dcomb = a_.dcomb.template data<const float>() + token * n_ * n_;
      for (int i = 0; i < n_ * n_; ++i) gates_.d[2 * n_ + i].v[l] = dcomb[i];
    }
  }

  const HcGateBackwardArgs& a_;
  const float* fn_;
  float* dmixes_;
  float* partial_;
  int n_, n_mixes_;
  std::int64_t hidden_;
  GateLanes gates_;
  std::array<Lane, (2 + kMaxStreams) * kMaxStreams> raw_;
  std::vector<Lane> sums_;
};

constexpr std::int64_t kBlock = 256;  // columns of all streams that stay in the first cache

// sums[i] += x[c] * y[c] over [0, width), in lanes.
template <class T>
HADAL_SIMD_INLINE void add_products(Lane& sums, const float* x, const T* y, std::int64_t width) {
  Lane lanes = sums;
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes.v[l] += x[i + l] * load(y[i + l]);
  }
  for (int l = 0; i + l < width; ++l) lanes.v[l] += x[i + l] * load(y[i + l]);
  sums = lanes;
}

// to[i] = sum_k weights[k] * dy[k, i].
HADAL_SIMD_INLINE void mix(float* to, const float* dy, const float* weights, int n,
                           std::int64_t hidden, std::int64_t width) {
  if (n == 4) {  // as published: one pass
    const float *y1 = dy + hidden, *y2 = y1 + hidden, *y3 = y2 + hidden;
    for (std::int64_t i = 0; i < width; ++i) {
      to[i] = weights[0] * dy[i] + weights[1] * y1[i] + weights[2] * y2[i] + weights[3] * y3[i];
    }
    return;
  }
  for (std::int64_t i = 0; i < width; ++i) to[i] = weights[0] * dy[i];
  for (int k = 1; k < n; ++k) {
    const float* row = dy + k * hidden;
    for (std::int64_t i = 0; i < width; ++i) to[i] += weights[k] * row[i];
  }
}

struct PostToken {
  float *da, *dstreams, *dpost, *dcomb;  // null: not wanted
  const float *dy, *post, *comb;
  int n;
  std::int64_t hidden;
};

template <class T>
HADAL_SIMD_INLINE void post_backward_as(const PostToken& p, const T* a, const T* streams) {
  const int n = p.n;
  Lane post_sums[kMaxStreams], comb_sums[kMaxStreams * kMaxStreams];
  std::fill_n(post_sums, n, Lane{});
  std::fill_n(comb_sums, n * n, Lane{});
  for (std::int64_t c = 0; c < p.hidden; c += kBlock) {
    const std::int64_t width = std::min(kBlock, p.hidden - c);
    const float* dy = p.dy + c;
    if (p.da != nullptr) mix(p.da + c, dy, p.post, n, p.hidden, width);
    if (p.dstreams != nullptr) {
      for (int j = 0; j < n; ++j) {
        mix(p.dstreams + j * p.hidden + c, dy, p.comb + j * n, n, p.hidden, width);
      }
    }
    for (int k = 0; k < n; ++k) {
      add_products(post_sums[k], dy + k * p.hidden, a + c, width);
      for (int j = 0; j < n; ++j) {
        add_products(comb_sums[j * n + k], dy + k * p.hidden, streams + j * p.hidden + c, width);
      }
    }
  }
  for (int k = 0; k < n && p.dpost != nullptr; ++k) p.dpost[k] = fold_lanes(post_sums[k].v);
  for (int i = 0; i < n * n && p.dcomb != nullptr; ++i) p.dcomb[i] = fold_lanes(comb_sums[i].v);
}
HADAL_SIMD_CLONES void post_backward(const PostToken& p, const float* a, const float* streams) {
  post_backward_as(p, a, streams);
}
HADAL_SIMD_CLONES void post_backward(const PostToken& p, const bf16* a, const bf16* streams) {
  post_backward_as(p, a, streams);
}

float* row_of(const TensorView& x, std::int64_t offset) {
  return x ? x.data<float>() + offset : nullptr;
}

}  // namespace

void hc_gate_backward(Stream& stream, const HcGateBackwardArgs& a) {
  const std::int64_t n_tokens = a.streams.dim(0), n_mixes = a.saved.mixes.dim(1);
  const std::int64_t width = a.streams.dim(1) * a.streams.dim(2);
  HADAL_CHECK(a.streams.dim(1) <= kMaxStreams);
  if (n_tokens == 0) return;
  thread_local std::vector<float> fn_buffer, streams_buffer, dmixes_buffer, partial_buffer;
  const float* fn = a.dstreams ? f32_rows(stream.pool(), a.weights->fn, fn_buffer) : nullptr;
  const std::int64_t n_ranges = (n_tokens + kRange - 1) / kRange, n_sums = 3 + n_mixes;
  dmixes_buffer.resize(static_cast<std::size_t>(n_tokens * n_mixes));
  partial_buffer.assign(static_cast<std::size_t>(n_ranges * n_sums), 0.0f);
  float *dmixes = dmixes_buffer.data(), *partial = partial_buffer.data();
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(n_ranges, 1, [&](std::int64_t begin, std::int64_t end) {
      GateBackward<T> gate(a, fn, dmixes, partial);
      for (std::int64_t i = begin; i < end; ++i) {
        gate.range(stream.pool(), i * kRange, std::min(n_tokens, (i + 1) * kRange));
      }
    });
  });
  for (std::int64_t i = 0; i < n_ranges; ++i) {
    const float* sums = partial + i * n_sums;
    for (std::int64_t g = 0; a.dscale && g < a.dscale.numel(); ++g) {
      a.dscale.data<float>()[g] += sums[g];
    }
    for (std::int64_t m = 0; a.dbase && m < n_mixes; ++m) a.dbase.data<float>()[m] += sums[3 + m];
  }
  for (std::int64_t t = 0; a.dfn && t < n_tokens; t += kFnRows) {
    const std::int64_t end = std::min(n_tokens, t + kFnRows);
    const TensorView rows = a.streams.reshape({n_tokens, width}).slice(t, end);
    const float* x = f32_rows(stream.pool(), rows, ActivationQuant::none, streams_buffer);
    gemm(stream.pool(), {.c = matrix(a.dfn.data<const float>(), n_mixes, width),
                         .a = matrix(dmixes + t * n_mixes, end - t, n_mixes),
                         .b = matrix(x, end - t, width),
                         .transpose_a = Transposed::yes,
                         .beta = 1.0f});
  }
}

void hc_post_backward(Stream& stream, const HcPostBackwardArgs& a) {
  const std::int64_t n = a.streams.dim(1), hidden = a.streams.dim(2);
  HADAL_CHECK(n <= kMaxStreams);
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.dy.dim(0), 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        post_backward({.da = row_of(a.da, t * hidden),
                       .dstreams = row_of(a.dstreams, t * n * hidden),
                       .dpost = row_of(a.dpost, t * n),
                       .dcomb = row_of(a.dcomb, t * n * n),
                       .dy = a.dy.data<const float>() + t * n * hidden,
                       .post = a.post.data<const float>() + t * n,
                       .comb = a.comb.data<const float>() + t * n * n,
                       .n = static_cast<int>(n),
                       .hidden = hidden},
                      a.a.data<const T>() + t * hidden, a.streams.data<const T>() + t * n * hidden);
      }
    });
  });
}

}  // namespace hadal::kernels::cpu
