// A block a token: every stream is read once, its gradients are written, and the sums over columns
// stay in registers until the end.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/hyper_connection.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxStreams = 16;

struct PostBackward {
  float *da, *dstreams, *dpost, *dcomb;  // null: not wanted
  const float *dy, *post, *comb;
  int n;
  std::int64_t hidden;
};

// Four streams, as published.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    four_streams_kernel(const PostBackward p, const T* a, const T* streams) {
  constexpr int kN = 4, kSums = 4 + 16;
  __shared__ float post[4], comb[16], shared[kWarps][kSums];
  const std::int64_t token = blockIdx.x, hidden = p.hidden;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread < 4) post[thread] = p.post[token * 4 + thread];
  if (thread < 16) comb[thread] = p.comb[token * 16 + thread];
  __syncthreads();
  const float* const dy = p.dy + token * 4 * hidden;
  const T* const from = streams + token * 4 * hidden;
  float sums[kSums] = {};  // [k] of post, [4 + 4 j + k] of comb
  for (std::int64_t at = std::int64_t{thread} * kN; at < hidden; at += kThreads * kN) {
    float d[4][kN], x[kN], out[kN];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_group<kVector>(d[k], dy + k * hidden, at, hidden);
    const auto add = [&](float* to) {  // products of x with every stream's gradient
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < kN; ++i) to[k] = fmaf(d[k][i], x[i], to[k]);
      }
    };
    const auto mix = [&](const float* weights) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        out[i] = weights[0] * d[0][i] + weights[1] * d[1][i] + weights[2] * d[2][i] +
                 weights[3] * d[3][i];
      }
    };
    load_group<kVector>(x, a + token * hidden, at, hidden);
    add(sums);
    if (p.da != nullptr) {
      mix(post);
      put_group<kVector>(p.da + token * hidden, at, hidden, out);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      load_group<kVector>(x, from + j * hidden, at, hidden);
      add(sums + 4 + 4 * j);
      if (p.dstreams == nullptr) continue;
      mix(comb + 4 * j);
      put_group<kVector>(p.dstreams + (token * 4 + j) * hidden, at, hidden, out);
    }
  }
  const float total = lane_totals(sums);
  if (lane < kSums) shared[thread / 32][lane] = total;
  __syncthreads();
  if (thread >= kSums) return;
  float sum = shared[0][thread];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += shared[w][thread];
  if (thread < 4) {
    if (p.dpost != nullptr) p.dpost[token * 4 + thread] = sum;
  } else if (p.dcomb != nullptr) {
    p.dcomb[token * 16 + thread - 4] = sum;
  }
}

// Any number of streams: first what is written by column, then a warp a sum.
template <class T>
__global__ void __launch_bounds__(kThreads)
    any_streams_kernel(const PostBackward p, const T* a, const T* streams) {
  const std::int64_t token = blockIdx.x, hidden = p.hidden;
  const int n = p.n, thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float *const dy = p.dy + token * n * hidden, *const post = p.post + token * n;
  const float* const comb = p.comb + token * n * n;
  const auto mix = [&](float* to, const float* weights) {
    for (std::int64_t i = thread; i < hidden; i += kThreads) {
      float sum = weights[0] * dy[i];
      for (int k = 1; k < n; ++k) sum = fmaf(weights[k], dy[k * hidden + i], sum);
      to[i] = sum;
    }
  };
  if (p.da != nullptr) mix(p.da + token * hidden, post);
  for (int j = 0; j < n && p.dstreams != nullptr; ++j) {
    mix(p.dstreams + (token * n + j) * hidden, comb + j * n);
  }
  for (int s = thread / 32; s < n + n * n; s += kWarps) {  // [k] of post, [n + n j + k] of comb
    const T* x = s < n ? a + token * hidden : streams + (token * n + (s - n) / n) * hidden;
    const float* d = dy + s % n * hidden;
    float sum = 0.0f;
    for (std::int64_t i = lane; i < hidden; i += 32) sum = fmaf(d[i], load(x[i]), sum);
    sum = warp_sum(sum);
    if (lane != 0) continue;
    if (s < n) {
      if (p.dpost != nullptr) p.dpost[token * n + s] = sum;
    } else if (p.dcomb != nullptr) {
      p.dcomb[token * n * n + s - n] = sum;
    }
  }
}

float* wanted(const TensorView& x) {
  return x ? data<float>(x) : nullptr;
}

}  // namespace

void hc_post_backward(Stream& stream, const HcPostBackwardArgs& a) {
  const std::int64_t n_tokens = a.dy.dim(0), n = a.streams.dim(1), hidden = a.streams.dim(2);
  HADAL_CHECK(n <= kMaxStreams);
  const PostBackward p{.da = wanted(a.da),
                       .dstreams = wanted(a.dstreams),
                       .dpost = wanted(a.dpost),
                       .dcomb = wanted(a.dcomb),
                       .dy = data<const float>(a.dy),
                       .post = data<const float>(a.post),
                       .comb = data<const float>(a.comb),
                       .n = static_cast<int>(n),
                       .hidden = hidden};
  const Grid grid{dim3(blocks_for(n_tokens, 1)), dim3(kThreads)};
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    if (n != 4) {
      launch(stream, "hc_post_backward", any_streams_kernel<T>, grid, p, data<const T>(a.a),
             data<const T>(a.streams));
      return;
    }
    dispatch_bool(in_groups(hidden, 4, a.da, a.dstreams, a.dy, a.a, a.streams),
                  [&]<bool kVector>() {
                    launch(stream, "hc_post_backward", four_streams_kernel<T, kVector>, grid, p,
                           data<const T>(a.a), data<const T>(a.streams));
                  });
  });
}

}  // namespace hadal::kernels::cuda
