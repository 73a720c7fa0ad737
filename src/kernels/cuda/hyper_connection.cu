// hc_pre and hc_head are two kernels. The first one computes the products with fn and the sum of
// squares over a segment of columns for a tile of tokens: fn's segment waits in shared memory, a
// warp works on its tokens' streams.  The second one, a block a token, adds up the segments in
// their order, derives the gates and collapses the streams.  Segments depend on the width alone,
// and a token's arithmetic not on the size of its tile, so a token has the same bits in any batch;
// and a single token's projection, 1.5 MiB of fn as published, is spread over 32 blocks.
#include "kernels/hyper_connection.h"

#include <algorithm>

#include "kernels/cuda/device/hc_gates.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kMaxStreams = 16;

// ---- projection ----

constexpr int kSegment = 512;  // columns
constexpr int kProjectThreads = 192, kProjectWarps = kProjectThreads / 32;
// Tokens whose streams are projected, and then collapsed while they are still in the second-level
// cache (32 MiB as published).
constexpr std::int64_t kTokensAtOnce = 1024;
constexpr std::int64_t kTileTokens = 48;

// partial[segment, token, m] = the products of the segment's columns with mix m; m = n_mixes is the
// sum of squares. blockIdx: tile of tokens, segment, group of kMixes mixes.
template <class T, class W, int kMixes, int kTokens, bool kVector>
__global__ void __launch_bounds__(kProjectThreads, 2)
    project_kernel(float* partial, const T* streams, const W* fn, int n_tokens, int tile_tokens,
                   std::int64_t width, int n_mixes) {
  constexpr int kLaneColumns = 4, kStep = 32 * kLaneColumns;
  __shared__ float4 fn_tile[kMixes * kSegment / 4];
  const std::int64_t column0 = std::int64_t{blockIdx.y} * kSegment;
  const int mix0 = static_cast<int>(blockIdx.z) * kMixes;
  for (int i = static_cast<int>(threadIdx.x); i < kMixes * kSegment / 4; i += kProjectThreads) {
    const int m = mix0 + i / (kSegment / 4);
    float w[4] = {};
    if (m < n_mixes) {
      load_group<kVector>(w, fn + m * width, column0 + i % (kSegment / 4) * 4, width);
    }
    fn_tile[i] = make_float4(w[0], w[1], w[2], w[3]);
  }
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(blockIdx.x) * tile_tokens;
  const int end = min(first + tile_tokens, n_tokens);
  for (int t0 = first + warp * kTokens; t0 < end; t0 += kProjectWarps * kTokens) {
    float sums[kTokens][kMixes + 1] = {};  // the last one: of squares
#pragma unroll(kTokens == 1 ? kSegment / kStep : 1)
    for (int step = 0; step < kSegment / kStep; ++step) {
      const std::int64_t column = column0 + step * kStep + lane * kLaneColumns;
      float x[kTokens][kLaneColumns];
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {  // beyond the end: the last one once more, not written
        const std::int64_t token = min(t0 + i, end - 1);
        load_group<kVector>(x[i], streams + token * width, column, width);
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c) {
          sums[i][kMixes] = fmaf(x[i][c], x[i][c], sums[i][kMixes]);
        }
      }
#pragma unroll
      for (int m = 0; m < kMixes; ++m) {
        const float4 w = fn_tile[m * (kSegment / 4) + step * 32 + lane];
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          float sum = sums[i][m];
          sum = fmaf(x[i][0], w.x, sum);
          sum = fmaf(x[i][1], w.y, sum);
          sum = fmaf(x[i][2], w.z, sum);
          sums[i][m] = fmaf(x[i][3], w.w, sum);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float total = lane_totals(sums[i]);
      if (t0 + i >= end) break;
      float* to = partial + (std::int64_t{blockIdx.y} * n_tokens + t0 + i) * (n_mixes + 1);
      if (lane < kMixes && mix0 + lane < n_mixes) to[mix0 + lane] = total;
      if (lane == kMixes && mix0 == 0) to[n_mixes] = total;
    }
  }
}

// ---- gates and collapse ----

struct Finish {
  const float *partial, *scale, *base;
  float *post, *comb, *saved_mixes, *saved_rms;  // of the first token; null: not wanted
  int n_segments, n_tokens, n_streams, n_mixes, sinkhorn_iters;
  std::int64_t hidden;
  float hc_eps, norm_eps;
};

// kHead: gates are sigmoids alone. kFour: four streams, whose gates one warp computes in registers.
template <class T, bool kHead, bool kFour, bool kVector>
__global__ void __launch_bounds__(512) finish_kernel(T* x, const T* streams, const Finish f) {
  constexpr int kN = kGroup<T>;
  extern __shared__ float shared[];  // mixes and sum of squares; comb
  __shared__ float pre[kMaxStreams];
  const std::int64_t token = blockIdx.x;
  const int n = kFour ? 4 : f.n_streams, thread = static_cast<int>(threadIdx.x);
  const T* const from = streams + token * n * f.hidden;
  const std::int64_t first = std::int64_t{thread} * kN;
  // The first columns are on their way while the gates are computed.
  float v[kFour ? 4 : 1][kN];
  if constexpr (kFour) {
#pragma unroll
    for (int j = 0; j < 4; ++j) load_group<kVector>(v[j], from + j * f.hidden, first, f.hidden);
  }
  if (thread < 32) {
    const float rms_numel = static_cast<float>(n * f.hidden);
    for (int m = thread; m <= f.n_mixes; m += 32) {
      const float* part = f.partial + token * (f.n_mixes + 1) + m;
      const std::int64_t stride = std::int64_t{f.n_tokens} * (f.n_mixes + 1);
      float sum = 0.0f;
#pragma unroll 16
      for (int s = 0; s < f.n_segments; ++s) sum += part[s * stride];
      shared[m] = sum;
    }
    __syncwarp();
    const float rms = 1.0f / sqrtf(shared[f.n_mixes] / rms_numel + f.norm_eps);
    __syncwarp();
    for (int m = thread; m < f.n_mixes; m += 32) {
      shared[m] *= rms;
      if (f.saved_mixes != nullptr) f.saved_mixes[token * f.n_mixes + m] = shared[m];
    }
    if (f.saved_rms != nullptr && thread == 0) f.saved_rms[token] = rms;
    __syncwarp();
    hc_pre_gates(shared, f.scale, f.base, n, f.hc_eps, pre);
    if constexpr (!kHead) {
      hc_post_gates(shared, f.scale, f.base, n, f.post + token * n);
      float* const comb = f.comb + token * n * n;
      if constexpr (kFour)
        hc_comb_of_four(shared, f.scale, f.base, f.sinkhorn_iters, f.hc_eps, comb);
      else
        hc_comb(shared, f.scale, f.base, n, f.sinkhorn_iters, f.hc_eps, shared + f.n_mixes + 1,
                comb);
    }
  }
  __syncthreads();

  for (std::int64_t at = first; at < f.hidden; at += std::int64_t{blockDim.x} * kN) {
    float sum[kN];
    if constexpr (kFour) {
      if (at != first) {
#pragma unroll
        for (int j = 0; j < 4; ++j) load_group<kVector>(v[j], from + j * f.hidden, at, f.hidden);
      }
    }
    for (int j = 0; j < n; ++j) {
      if constexpr (!kFour) load_group<kVector>(v[0], from + j * f.hidden, at, f.hidden);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const float product = __fmul_rn(pre[j], v[kFour ? j : 0][i]);
        sum[i] = j == 0 ? product : __fadd_rn(sum[i], product);
      }
    }
    put_group<kVector>(x + token * f.hidden, at, f.hidden, sum);
  }
}

// Threads of a block that finishes a token. One token wants all of its columns at once; among many,
// small blocks let more tokens go through their gates at a time.
int threads_for(std::int64_t groups, std::int64_t n_tokens) {
  const std::int64_t most = n_tokens > 256 ? 128 : 512;
  return static_cast<int>(std::clamp<std::int64_t>(ceil_div(groups, 32) * 32, 64, most));
}

template <class T, class W, int kMixes>
void project(Stream& stream, const TensorView& streams, const TensorView& fn, float* partial) {
  const std::int64_t n_tokens = streams.dim(0), width = fn.dim(1), n_mixes = fn.dim(0);
  const std::int64_t n_segments = ceil_div(width, kSegment);
  const auto run = [&]<int kTokens, bool kVector>(std::int64_t tile) {
    launch(stream, "hc_project", project_kernel<T, W, kMixes, kTokens, kVector>,
           {dim3(blocks_for(n_tokens, tile), static_cast<unsigned>(n_segments),
                 blocks_for(n_mixes, kMixes)),
            dim3(kProjectThreads)},
           partial, data<const T>(streams), data<const W>(fn), static_cast<int>(n_tokens),
           static_cast<int>(tile), width, static_cast<int>(n_mixes));
  };
  dispatch_bool(in_groups(width, 4, streams, fn), [&]<bool kVector>() {
    if (n_tokens <= kProjectWarps) {
      run.template operator()<1, kVector>(kProjectWarps);
    } else {
      run.template operator()<4, kVector>(kTileTokens);
    }
  });
}

// Both hc_pre and hc_head; a head has no post and comb.
struct Collapse {
  TensorView x, post, comb, streams;
  const HcWeights& weights;
  int sinkhorn_iters;
  float hc_eps, norm_eps;
  HcSaved saved;
};

float* row_of(const TensorView& x, std::int64_t row) {
  return x ? data<float>(x.slice(row, row + 1)) : nullptr;
}

template <class T, bool kHead>
void collapse_tokens(Stream& stream, const Collapse& a, const Tensor& scratch, std::int64_t begin,
                     std::int64_t end) {
  const TensorView streams = a.streams.slice(begin, end), x = a.x.slice(begin, end);
  const TensorView fn = a.weights.fn.data;
  const std::int64_t n = streams.dim(1), hidden = streams.dim(2), n_mixes = fn.dim(0);
  auto* partial = reinterpret_cast<float*>(scratch.bytes());
  dispatch_activation(fn.dtype(), [&]<class W>() {
    if (n_mixes <= 8)
      project<T, W, 8>(stream, streams, fn, partial);
    else
      project<T, W, 24>(stream, streams, fn, partial);
  });
  const Finish f{.partial = partial,
                 .scale = data<const float>(a.weights.scale),
                 .base = data<const float>(a.weights.base),
                 .post = row_of(a.post, begin),
                 .comb = row_of(a.comb, begin),
                 .saved_mixes = row_of(a.saved.mixes, begin),
                 .saved_rms = row_of(a.saved.rms, begin),
                 .n_segments = static_cast<int>(ceil_div(fn.dim(1), kSegment)),
                 .n_tokens = static_cast<int>(end - begin),
                 .n_streams = static_cast<int>(n),
                 .n_mixes = static_cast<int>(n_mixes),
                 .sinkhorn_iters = a.sinkhorn_iters,
                 .hidden = hidden,
                 .hc_eps = a.hc_eps,
                 .norm_eps = a.norm_eps};
  const Grid grid{
      dim3(blocks_for(end - begin, 1)),
      dim3(static_cast<unsigned>(threads_for(ceil_div(hidden, kGroup<T>), end - begin))),
      static_cast<int>((n_mixes + 1 + n * n) * 4)};
  dispatch_bool(in_groups(hidden, kGroup<T>, streams, x), [&]<bool kVector>() {
    dispatch_bool(n == 4, [&]<bool kFour>() {
      launch(stream, "hc_finish", finish_kernel<T, kHead, kFour, kVector>, grid, data<T>(x),
             data<const T>(streams), f);
    });
  });
}

template <bool kHead>
void collapse(Stream& stream, const Collapse& a) {
  const std::int64_t n_tokens = a.streams.dim(0), n = a.streams.dim(1);
  const TensorView fn = a.weights.fn.data;
  HADAL_CHECK(n <= kMaxStreams && fn.dim(0) == (kHead ? n : (2 + n) * n));
  HADAL_CHECK(fn.dim(1) == n * a.streams.dim(2));
  if (n_tokens == 0) return;
  const std::int64_t row_bytes = ceil_div(fn.dim(1), kSegment) * (fn.dim(0) + 1) * 4;
  const Tensor scratch = stream.cuda().scratch(std::min(n_tokens, kTokensAtOnce) * row_bytes);
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    for (std::int64_t t = 0; t < n_tokens; t += kTokensAtOnce) {
      collapse_tokens<T, kHead>(stream, a, scratch, t, std::min(n_tokens, t + kTokensAtOnce));
    }
  });
}

// ---- hc_post ----

constexpr int kPostThreads = 128;

// A thread has kN columns of every stream; blockIdx: token, columns.
template <class T, bool kFour, bool kVector>
__global__ void __launch_bounds__(kPostThreads)
    post_kernel(T* y, const T* a, const T* streams, const float* post, const float* comb,
                int n_streams, std::int64_t hidden) {
  constexpr int kN = kGroup<T>;
  const std::int64_t token = blockIdx.x;
  const std::int64_t at = (std::int64_t{blockIdx.y} * kPostThreads + threadIdx.x) * kN;
  if (at >= hidden) return;
  const int n = kFour ? 4 : n_streams;
  const T* const from = streams + token * n * hidden;
  T* const to = y + token * n * hidden;
  post += token * n;
  comb += token * n * n;
  float out[kN], v[kFour ? 4 : 1][kN];
  load_group<kVector>(out, a + token * hidden, at, hidden);
  if constexpr (kFour) {
#pragma unroll
    for (int j = 0; j < 4; ++j) load_group<kVector>(v[j], from + j * hidden, at, hidden);
  }
#pragma unroll 4
  for (int k = 0; k < n; ++k) {
    float sum[kN];
#pragma unroll 4
    for (int j = 0; j < n; ++j) {
      const float weight = comb[j * n + k];
      if constexpr (!kFour) load_group<kVector>(v[0], from + j * hidden, at, hidden);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const float product = __fmul_rn(weight, v[kFour ? j : 0][i]);
        sum[i] = j == 0 ? product : __fadd_rn(sum[i], product);
      }
    }
    const float own = post[k];
#pragma unroll
    for (int i = 0; i < kN; ++i) sum[i] = __fadd_rn(__fmul_rn(own, out[i]), sum[i]);
    put_group<kVector>(to + k * hidden, at, hidden, sum);
  }
}

}  // namespace

void hc_pre(Stream& stream, const HcPreArgs& a) {
  collapse<false>(stream, {.x = a.x,
                           .post = a.post,
                           .comb = a.comb,
                           .streams = a.streams,
                           .weights = *a.weights,
                           .sinkhorn_iters = a.sinkhorn_iters,
                           .hc_eps = a.hc_eps,
                           .norm_eps = a.norm_eps,
                           .saved = a.saved});
}

void hc_head(Stream& stream, const HcHeadArgs& a) {
  collapse<true>(stream, {.x = a.x,
                          .post = {},
                          .comb = {},
                          .streams = a.streams,
                          .weights = *a.weights,
                          .sinkhorn_iters = 0,
                          .hc_eps = a.hc_eps,
                          .norm_eps = a.norm_eps,
                          .saved = a.saved});
}

void hc_post(Stream& stream, const HcPostArgs& a) {
  const std::int64_t n_tokens = a.y.dim(0), n = a.streams.dim(1), hidden = a.streams.dim(2);
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    dispatch_bool(in_groups(hidden, kGroup<T>, a.y, a.a, a.streams), [&]<bool kVector>() {
      dispatch_bool(n == 4, [&]<bool kFour>() {
        launch(stream, "hc_post", post_kernel<T, kFour, kVector>,
               {dim3(blocks_for(n_tokens, 1), blocks_for(hidden, kPostThreads * kGroup<T>)),
                dim3(kPostThreads)},
               data<T>(a.y), data<const T>(a.a), data<const T>(a.streams),
               data<const float>(a.post), data<const float>(a.comb), static_cast<int>(n), hidden);
      });
    });
  });
}

}  // namespace hadal::kernels::cuda
