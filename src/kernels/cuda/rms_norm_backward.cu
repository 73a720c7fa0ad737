// A warp a row where rows are short, a block a row where they are long, as in rms_norm: the factor
// of a row, and dx. The gradient of the weight adds up rows in chunks of a fixed length, then the
// chunks in their order: what it is does not depend on how blocks are scheduled.
#include "kernels/cuda/device/column_sum.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/rms_norm.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kBlock = 256;
constexpr std::int64_t kLongestForWarp = 1024;
constexpr std::int64_t kChunkRows = 64;

// inverse[row] = 1 / sqrt(mean(x^2) + eps), and dx where it is wanted.
template <class T, int kThreads, bool kVector>
__global__ void __launch_bounds__(kBlock)
    row_kernel(float* dx, float* inverses, const float* dy, const T* x, const float* weight,
               std::int64_t n_rows, int n, float eps) {
  constexpr int kN = 4, kRows = kBlock / kThreads;
  __shared__ float shared[kBlock / 32];
  const std::int64_t row = std::int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads;
  if (row >= n_rows) return;
  const int first = static_cast<int>(threadIdx.x) % kThreads * kN;
  x += row * n;
  dy += row * n;
  const auto total = [&](float sum) {
    if constexpr (kThreads == 32)
      return warp_sum(sum);
    else
      return block_sum<kThreads>(sum, shared);
  };
  // weight * dy of a group; an empty weight is ones.
  const auto load_g = [&](float(&g)[kN], int at) {
    load_group<kVector>(g, dy, at, n);
    if (weight == nullptr) return;
    float w[kN];
    load_group<kVector>(w, weight, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) g[i] *= w[i];
  };
  float squares = 0.0f, dot = 0.0f, v[kN], g[kN];
#pragma unroll 4
  for (int at = first; at < n; at += kThreads * kN) {
    load_group<kVector>(v, x, at, n);
    load_g(g, at);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      squares = fmaf(v[i], v[i], squares);
      dot = fmaf(g[i], v[i], dot);
    }
  }
  const float inverse = 1.0f / sqrtf(total(squares) / static_cast<float>(n) + eps);
  if (inverses != nullptr && first == 0) inverses[row] = inverse;
  if (dx == nullptr) return;
  const float pull = total(dot) * inverse * inverse / static_cast<float>(n);
#pragma unroll 4
  for (int at = first; at < n; at += kThreads * kN) {
    load_group<kVector>(v, x, at, n);
    load_g(g, at);
#pragma unroll
    for (int i = 0; i < kN; ++i) g[i] = inverse * (g[i] - v[i] * pull);
    put_group<kVector>(dx + row * n, at, n, g);
  }
}

constexpr int kWeightThreads = 128;

// partial[chunk, column] = the sum of dy * x * inverse over a chunk of rows, ascending.
template <class T>
__global__ void weight_kernel(float* partial, const float* inverses, const float* dy, const T* x,
                              std::int64_t n_rows, int n) {
  const int column = static_cast<int>(blockIdx.y * kWeightThreads + threadIdx.x);
  if (column >= n) return;
  const std::int64_t begin = std::int64_t{blockIdx.x} * kChunkRows;
  const std::int64_t end = min(begin + kChunkRows, n_rows);
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t row = begin; row < end; ++row) {
    sum += dy[row * n + column] * (load(x[row * n + column]) * inverses[row]);
  }
  partial[std::int64_t{blockIdx.x} * n + column] = sum;
}

}  // namespace

void rms_norm_backward(Stream& stream, const RmsNormBackwardArgs& a) {
  const std::int64_t n_rows = a.x.dim(0), n = a.x.dim(1);
  if (n_rows == 0) return;
  const std::int64_t n_chunks = ceil_div(n_rows, kChunkRows);
  Tensor scratch;
  if (a.dweight) scratch = stream.cuda().scratch((n_rows + n_chunks * n) * 4);
  float* const inverses = a.dweight ? reinterpret_cast<float*>(scratch.bytes()) : nullptr;
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    const auto rows = [&]<int kThreads, bool kVector>() {
      launch(stream, "rms_norm_backward", row_kernel<T, kThreads, kVector>,
             {dim3(blocks_for(n_rows, kBlock / kThreads)), dim3(kBlock)},
             a.dx ? data<float>(a.dx) : nullptr, inverses, data<const float>(a.dy),
             data<const T>(a.x), a.weight ? data<const float>(a.weight) : nullptr, n_rows,
             static_cast<int>(n), a.eps);
    };
    dispatch_bool(in_groups(n, 4, a.dx, a.dy, a.x, a.weight), [&]<bool kVector>() {
      if (n <= kLongestForWarp)
        rows.template operator()<32, kVector>();
      else
        rows.template operator()<kBlock, kVector>();
    });
    if (!a.dweight) return;
    float* const partial = inverses + n_rows;
    launch(stream, "rms_norm_backward", weight_kernel<T>,
           {dim3(blocks_for(n_chunks, 1), blocks_for(n, kWeightThreads)), dim3(kWeightThreads)},
           partial, inverses, data<const float>(a.dy), data<const T>(a.x), n_rows,
           static_cast<int>(n));
    add_column_sums(stream, data<float>(a.dweight), partial, n_chunks, n);
  });
}

}  // namespace hadal::kernels::cuda
