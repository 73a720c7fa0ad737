// Five kernels. (1) The products of dx with every stream: the gradients of pre. (2) A warp a token:
// through the gates to the gradients of the mixes. (3) The sums of those over tokens, for scale and
// base. (4) A thread a pair of columns, down a chunk of tokens: dmixes . fn for the streams'
// gradient and dmixes^T . streams for fn's, with the columns of fn and of its gradient in
// registers, so that streams are read once. (5) The chunks of fn's gradient, added up in their
// order.  Chunks have a fixed length: no sum depends on how blocks are scheduled.
#include <algorithm>

#include "kernels/cuda/device/column_sum.cuh"
#include "kernels/cuda/device/hc_gates.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/hyper_connection.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kMaxStreams = 16;

// What the kernels hand on, all of n_tokens rows.
struct TokenGates {
  float* pre;   // [n]        gradients of the gates, then the gates
  float* draw;  // [n_mixes]  gradients of mixes * scale + base
  float* dmix;  // [n_mixes]  gradients of the products with fn
  float* pull;  // [1]        what the RMS factor takes from the streams, per unit of them
  int n, n_mixes;
};

// ---- gradients of pre ----

constexpr int kDotThreads = 128;

template <class T, bool kVector>
__global__ void __launch_bounds__(kDotThreads)
    pre_kernel(float* dpre, const float* dx, const T* streams, int n, std::int64_t hidden) {
  constexpr int kN = 4;
  __shared__ float shared[kDotThreads / 32];
  const std::int64_t token = blockIdx.x, row = token * n + blockIdx.y;
  float sum = 0.0f, x[kN], d[kN];
#pragma unroll 4
  for (std::int64_t at = std::int64_t{threadIdx.x} * kN; at < hidden; at += kDotThreads * kN) {
    load_group<kVector>(x, streams + row * hidden, at, hidden);
    load_group<kVector>(d, dx + token * hidden, at, hidden);
#pragma unroll
    for (int i = 0; i < kN; ++i) sum = fmaf(d[i], x[i], sum);
  }
  sum = block_sum<kDotThreads>(sum, shared);
  if (threadIdx.x == 0) dpre[row] = sum;
}

// ---- through the gates ----

constexpr int kGateWarps = 4;

struct Gates {
  const float *mixes, *rms, *scale, *base, *dpost, *dcomb;
  std::int64_t n_tokens, width;
  int half_steps;
  float eps;
};

// d: the gradient of comb, replaced by that of its logits m; n lines, one a lane. Forward keeps the
// sums that divided, backward multiplies by them, so that no matrix is kept. All in shared memory.
__device__ void sinkhorn_backward(float* d, float* m, float* softmax, float* sums, int n,
                                  int half_steps, float eps) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < n) {
    const int first = lane * n, end = first + n;
    float peak = -INFINITY, sum = 0.0f;
    for (int i = first; i < end; ++i) peak = fmaxf(peak, m[i]);
    for (int i = first; i < end; ++i) sum += m[i] = expf(m[i] - peak);
    for (int i = first; i < end; ++i) {
      softmax[i] = m[i] / sum;
      m[i] = softmax[i] + eps;
    }
  }
  __syncwarp();
  // Half steps alternate columns, rows, ..., columns; `across` steps along the line that is summed.
  for (int step = 0; step < half_steps; ++step) {
    const int across = step % 2 == 0 ? n : 1, first = lane * (n + 1 - across);
    if (lane < n) {
      float sum = eps;
      for (int i = 0; i < n; ++i) sum += m[first + i * across];
      for (int i = 0; i < n; ++i) m[first + i * across] /= sum;
      sums[step * n + lane] = sum;
    }
    __syncwarp();
  }
  for (int step = half_steps - 1; step >= 0; --step) {
    const int across = step % 2 == 0 ? n : 1, first = lane * (n + 1 - across);
    if (lane < n) {
      const float sum = sums[step * n + lane];
      float dot = 0.0f;
      for (int i = 0; i < n; ++i) dot += d[first + i * across] * m[first + i * across];
      for (int i = 0; i < n; ++i) {
        d[first + i * across] = (d[first + i * across] - dot) / sum;
        m[first + i * across] *= sum;
      }
    }
    __syncwarp();
  }
  if (lane < n) {
    float dot = 0.0f;
    for (int i = lane * n; i < (lane + 1) * n; ++i) dot += d[i] * softmax[i];
    for (int i = lane * n; i < (lane + 1) * n; ++i) d[i] = softmax[i] * (d[i] - dot);
  }
  __syncwarp();
}

// A warp a token. Shared memory of a warp: [n_mixes] gradients, [n, n] logits, [n, n] softmax,
// [half_steps, n] sums.
__global__ void __launch_bounds__(kGateWarps * 32) gates_kernel(const TokenGates g, const Gates a) {
  extern __shared__ float shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t token = std::int64_t{blockIdx.x} * kGateWarps + warp;
  if (token >= a.n_tokens) return;
  const int n = g.n, n_mixes = g.n_mixes;
  float* const d = shared + warp * (n_mixes + 2 * n * n + a.half_steps * n);
  float *const logits = d + n_mixes, *const softmax = logits + n * n;
  float* const sums = softmax + n * n;
  const float* const mixes = a.mixes + token * n_mixes;
  for (int m = lane; m < n_mixes; m += 32) {
    const int gate = min(m / n, 2);
    const float raw = hc_logit(mixes, a.scale, a.base, gate, m);
    if (gate == 2) {
      d[m] = a.dcomb[token * n * n + m - 2 * n];
      logits[m - 2 * n] = raw;
      continue;
    }
    const float s = sigmoid(raw);
    const float dgate = gate == 0 ? g.pre[token * n + m] : 2.0f * a.dpost[token * n + m - n];
    d[m] = dgate * s * (1.0f - s);
    if (gate == 0) g.pre[token * n + m] = s + a.eps;
  }
  __syncwarp();
  if (n_mixes > 2 * n) {
    sinkhorn_backward(d + 2 * n, logits, softmax, sums, n, a.half_steps, a.eps);
  }
  const float rms = a.rms[token];
  float dot = 0.0f;  // over mixes, of their gradients with them
  for (int m = lane; m < n_mixes; m += 32) {
    const float own = a.scale[min(m / n, 2)] * d[m];
    dot = fmaf(own, mixes[m], dot);
    g.draw[token * n_mixes + m] = d[m];
    g.dmix[token * n_mixes + m] = rms * own;
  }
  dot = warp_sum(dot);
  if (lane == 0) g.pull[token] = rms * rms * dot / static_cast<float>(a.width);
}

// ---- scale and base ----

constexpr std::int64_t kScaleChunk = 64;

// partial[chunk, 0, m] = sum of draw over the chunk's tokens, [chunk, 1, m] of draw * mix.
__global__ void chunk_sums_kernel(float* partial, const float* draw, const float* mixes,
                                  std::int64_t n_tokens, int n_mixes) {
  const int m = static_cast<int>(threadIdx.x);
  if (m >= 2 * n_mixes) return;
  const bool by_mix = m >= n_mixes;
  const int column = by_mix ? m - n_mixes : m;
  const std::int64_t begin = std::int64_t{blockIdx.x} * kScaleChunk;
  const std::int64_t end = min(begin + kScaleChunk, n_tokens);
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t at = t * n_mixes + column;
    sum = by_mix ? fmaf(draw[at], mixes[at], sum) : sum + draw[at];
  }
  partial[std::int64_t{blockIdx.x} * 2 * n_mixes + m] = sum;
}

__global__ void scale_and_base_kernel(float* dscale, float* dbase, const float* partial,
                                      std::int64_t n_chunks, int n, int n_mixes) {
  extern __shared__ float by_mix[];
  const int m = static_cast<int>(threadIdx.x);
  if (m < 2 * n_mixes) {
    float sum = 0.0f;
#pragma unroll 8
    for (std::int64_t c = 0; c < n_chunks; ++c) sum += partial[c * 2 * n_mixes + m];
    if (m >= n_mixes)
      by_mix[m - n_mixes] = sum;
    else if (dbase != nullptr)
      dbase[m] += sum;
  }
  __syncthreads();
  if (m >= (n_mixes > n ? 3 : 1) || dscale == nullptr) return;
  float sum = 0.0f;
  for (int i = m * n; i < (m == 2 ? n_mixes : (m + 1) * n); ++i) sum += by_mix[i];
  dscale[m] += sum;
}

// ---- streams and fn ----

constexpr int kColumnThreads = 128, kColumns = 2, kMixes = 24, kTogether = 4;
constexpr std::int64_t kFnChunk = 512;  // tokens
constexpr std::int64_t kFnChunksAtOnce = 16;

struct Columns {
  float *dstreams, *partial;  // partial [chunk, n_mixes, width]
  const float* dx;
  TokenGates gates;
  std::int64_t n_tokens, hidden, width;
  int mix0;  // the first of kMixes; the streams' direct gradient comes with mix 0
};

// blockIdx: pairs of columns, chunk of tokens.
template <class T, class W, bool kDstreams, bool kDfn, bool kVector>
__global__ void __launch_bounds__(kColumnThreads, 3)
    columns_kernel(const Columns a, const T* streams, const W* fn) {
  __shared__ float4 dmix[kTogether][kMixes / 4];
  const TokenGates& g = a.gates;
  const std::int64_t column = (std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x) * kColumns;
  const std::int64_t begin = std::int64_t{blockIdx.y} * kFnChunk;
  const std::int64_t end = min(begin + kFnChunk, a.n_tokens);
  int stream_of[kColumns];
  float w[kMixes][kColumns], dfn[kMixes][kColumns] = {};
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    stream_of[c] = static_cast<int>(min(column + c, a.width - 1) / a.hidden);
  }
#pragma unroll
  for (int m = 0; m < kMixes; ++m) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) w[m][c] = 0.0f;
    if (kDstreams && a.mix0 + m < g.n_mixes) {
      load_group<kVector>(w[m], fn + (a.mix0 + m) * a.width, column, a.width);
    }
  }
  for (std::int64_t t0 = begin; t0 < end; t0 += kTogether) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTogether * kMixes; i += kColumnThreads) {
      const std::int64_t t = t0 + i / kMixes;
      const int m = a.mix0 + i % kMixes;
      reinterpret_cast<float*>(dmix)[i] =
          t < end && m < g.n_mixes ? g.dmix[t * g.n_mixes + m] : 0.0f;
    }
    float x[kTogether][kColumns], ds[kTogether][kColumns];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {  // beyond the end: the last one once more, not written
      const std::int64_t t = min(t0 + i, end - 1);
      load_group<kVector>(x[i], streams + t * a.width, column, a.width);
      if constexpr (kDstreams) {
        load_group<kVector>(ds[i], a.dstreams + t * a.width, column, a.width);
        if (a.mix0 == 0) {
          float dx[kColumns];
          if constexpr (kVector) {
            load_group<true>(dx, a.dx + t * a.hidden, column - stream_of[0] * a.hidden, a.hidden);
          } else {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              const std::int64_t at = min(column + c, a.width - 1) - stream_of[c] * a.hidden;
              dx[c] = a.dx[t * a.hidden + at];
            }
          }
          const float pull = g.pull[t];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            ds[i][c] += g.pre[t * g.n + stream_of[c]] * dx[c] - pull * x[i][c];
          }
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      float sum[kColumns] = {};
#pragma unroll
      for (int m = 0; m < kMixes; m += 4) {
        const float4 four = dmix[i][m / 4];
        const float d[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            if (kDstreams) sum[c] = fmaf(d[k], w[m + k][c], sum[c]);
            if (kDfn) dfn[m + k][c] = fmaf(d[k], x[i][c], dfn[m + k][c]);
          }
        }
      }
      if constexpr (kDstreams) {
        if (t0 + i >= end) continue;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) ds[i][c] += sum[c];
        put_group<kVector>(a.dstreams + (t0 + i) * a.width, column, a.width, ds[i]);
      }
    }
  }
  if constexpr (kDfn) {
#pragma unroll
    for (int m = 0; m < kMixes; ++m) {
      if (a.mix0 + m >= g.n_mixes) break;
      float* to = a.partial + (std::int64_t{blockIdx.y} * g.n_mixes + a.mix0 + m) * a.width;
      put_group<kVector>(to, column, a.width, dfn[m]);
    }
  }
}

// Tokens [begin, end) of the arguments, as many as fn's partial sums have room for.
template <class T, class W, bool kDstreams, bool kDfn>
void run_columns(Stream& stream, const HcGateBackwardArgs& a, TokenGates g, float* partial,
                 std::int64_t begin, std::int64_t end) {
  const std::int64_t hidden = a.streams.dim(2), width = g.n * hidden, n = end - begin;
  g.pre += begin * g.n, g.dmix += begin * g.n_mixes, g.pull += begin;
  const TensorView streams = a.streams.slice(begin, end);
  const TensorView dstreams = kDstreams ? a.dstreams.slice(begin, end) : TensorView();
  const TensorView fn = a.weights->fn.data;
  const std::int64_t n_chunks = ceil_div(n, kFnChunk);
  dispatch_bool(in_groups(hidden, kColumns, streams, dstreams, a.dx, fn), [&]<bool kVector>() {
    for (int mix0 = 0; mix0 < g.n_mixes; mix0 += kMixes) {
      const Columns columns{.dstreams = kDstreams ? data<float>(dstreams) : nullptr,
                            .partial = partial,
                            .dx = data<const float>(a.dx.slice(begin, end)),
                            .gates = g,
                            .n_tokens = n,
                            .hidden = hidden,
                            .width = width,
                            .mix0 = mix0};
      launch(stream, "hc_gate_backward", columns_kernel<T, W, kDstreams, kDfn, kVector>,
             {dim3(blocks_for(width, kColumnThreads * kColumns), static_cast<unsigned>(n_chunks)),
              dim3(kColumnThreads)},
             columns, data<const T>(streams), data<const W>(fn));
    }
  });
  if constexpr (kDfn) {
    add_column_sums(stream, data<float>(a.dfn), partial, n_chunks, g.n_mixes * width);
  }
}

}  // namespace

void hc_gate_backward(Stream& stream, const HcGateBackwardArgs& a) {
  const std::int64_t n_tokens = a.streams.dim(0), n = a.streams.dim(1), hidden = a.streams.dim(2);
  const std::int64_t n_mixes = a.saved.mixes.dim(1), width = n * hidden;
  HADAL_CHECK(n <= kMaxStreams && (n_mixes == n || n_mixes == (2 + n) * n));
  if (n_tokens == 0) return;
  const std::int64_t n_sum_chunks = ceil_div(n_tokens, kScaleChunk);
  const std::int64_t at_once = std::min(n_tokens, kFnChunk * kFnChunksAtOnce);
  const std::int64_t gate_floats = n_tokens * (n + 2 * n_mixes + 1);
  const std::int64_t sum_floats = n_sum_chunks * 2 * n_mixes;
  const std::int64_t fn_floats = a.dfn ? ceil_div(at_once, kFnChunk) * n_mixes * width : 0;
  // fn's partial sums first: they are read and written 8 bytes at a time.
  const Tensor scratch = stream.cuda().scratch((fn_floats + gate_floats + sum_floats) * 4);
  auto* const fn_partial = reinterpret_cast<float*>(scratch.bytes());
  TokenGates g{};
  g.n = static_cast<int>(n), g.n_mixes = static_cast<int>(n_mixes);
  g.pre = fn_partial + fn_floats;
  g.draw = g.pre + n_tokens * n;
  g.dmix = g.draw + n_tokens * n_mixes;
  g.pull = g.dmix + n_tokens * n_mixes;
  float* const sums = g.pull + n_tokens;

  const Gates gates{.mixes = data<const float>(a.saved.mixes),
                    .rms = data<const float>(a.saved.rms),
                    .scale = data<const float>(a.weights->scale),
                    .base = data<const float>(a.weights->base),
                    .dpost = a.dpost ? data<const float>(a.dpost) : nullptr,
                    .dcomb = a.dcomb ? data<const float>(a.dcomb) : nullptr,
                    .n_tokens = n_tokens,
                    .width = width,
                    .half_steps = n_mixes > n ? 2 * std::max(1, a.sinkhorn_iters) - 1 : 0,
                    .eps = a.hc_eps};
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    dispatch_bool(in_groups(hidden, 4, a.dx, a.streams), [&]<bool kVector>() {
      launch(stream, "hc_gate_backward", pre_kernel<T, kVector>,
             {dim3(blocks_for(n_tokens, 1), static_cast<unsigned>(n)), dim3(kDotThreads)}, g.pre,
             data<const float>(a.dx), data<const T>(a.streams), static_cast<int>(n), hidden);
    });
  });
  launch(stream, "hc_gate_backward", gates_kernel,
         {dim3(blocks_for(n_tokens, kGateWarps)), dim3(kGateWarps * 32),
          static_cast<int>(kGateWarps * 4 * (n_mixes + 2 * n * n + gates.half_steps * n))},
         g, gates);
  if (a.dscale || a.dbase) {
    const auto threads = static_cast<unsigned>(ceil_div(2 * n_mixes, 32) * 32);
    launch(stream, "hc_gate_backward", chunk_sums_kernel,
           {dim3(blocks_for(n_sum_chunks, 1)), dim3(threads)}, sums, g.draw, gates.mixes, n_tokens,
           g.n_mixes);
    launch(stream, "hc_gate_backward", scale_and_base_kernel,
           {dim3(1), dim3(threads), static_cast<int>(n_mixes * 4)},
           a.dscale ? data<float>(a.dscale) : nullptr, a.dbase ? data<float>(a.dbase) : nullptr,
           sums, n_sum_chunks, g.n, g.n_mixes);
  }
  if (!a.dstreams && !a.dfn) return;
  dispatch_activation(a.streams.dtype(), [&]<class T>() {
    dispatch_activation(a.weights->fn.data.dtype(), [&]<class W>() {
      for (std::int64_t t = 0; t < n_tokens; t += at_once) {
        const std::int64_t end = std::min(n_tokens, t + at_once);
        if (a.dstreams && a.dfn)
          run_columns<T, W, true, true>(stream, a, g, fn_partial, t, end);
        else if (a.dfn)
          run_columns<T, W, false, true>(stream, a, g, fn_partial, t, end);
        else
          run_columns<T, W, true, false>(stream, a, g, fn_partial, t, end);
      }
    });
  });
}

}  // namespace hadal::kernels::cuda
