// A block a tile of 64 x 64 elements of a matrix, all matrices in one launch. A matrix with more
// rows than columns lies transposed in x: its tiles turn in shared memory, so that both sides are
// read and written along their rows. Products and sums are rounded one by one, as on the CPU.
#include "kernels/muon.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/device/chunks.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kTile = 64, kRowsAtOnce = kThreads / kTile;

struct Item {
  float *weight, *momentum;
  const float* gradient;
  std::int32_t rows, cols;
};

// A tile's place: of the matrix, and of the matrix in x.
struct Tile {
  std::int64_t row0, col0;
  __device__ Tile(const Item& item, std::int64_t tile) {
    const std::int64_t across = (item.cols + kTile - 1) / kTile;
    row0 = tile / across * kTile, col0 = tile % across * kTile;
  }
};

// fn(r, c) for this thread's elements of a tile that exist, c along the threads.
template <class Fn>
__device__ __forceinline__ void each_element(std::int64_t rows, std::int64_t cols, Fn&& fn) {
  const int c = static_cast<int>(threadIdx.x) % kTile;
  if (c >= cols) return;
#pragma unroll 4
  for (int r = static_cast<int>(threadIdx.x) / kTile; r < kTile; r += kRowsAtOnce) {
    if (r < rows) fn(r, c);
  }
}

// M <- mu M + s G, x <- mu M + s G; parts: sums of squares of x.
__global__ void __launch_bounds__(kThreads)
    look_ahead_kernel(double* parts, float* x, const Item* items, std::int64_t n_tiles, float mu,
                      float gradient_scale) {
  __shared__ float turned[kTile][kTile + 1];
  __shared__ double shared[kThreads / 32];
  const std::int64_t matrix = blockIdx.x / n_tiles;
  const Item item = items[matrix];
  const Tile tile(item, blockIdx.x - matrix * n_tiles);
  const std::int64_t rows = min(std::int64_t{kTile}, item.rows - tile.row0);
  const std::int64_t cols = min(std::int64_t{kTile}, item.cols - tile.col0);
  const bool turn = item.rows > item.cols;
  x += matrix * item.rows * item.cols;
  double sum = 0;
  each_element(rows, cols, [&](int r, int c) {
    const std::int64_t at = (tile.row0 + r) * item.cols + tile.col0 + c;
    const float g = __fmul_rn(item.gradient[at], gradient_scale);
    const float m = __fadd_rn(__fmul_rn(mu, item.momentum[at]), g);
    const float ahead = __fadd_rn(__fmul_rn(mu, m), g);
    item.momentum[at] = m;
    if (turn)
      turned[r][c] = ahead;
    else
      x[at] = ahead;
    sum = fma(static_cast<double>(ahead), static_cast<double>(ahead), sum);
  });
  sum = block_sum<kThreads>(sum, shared);  // and the tile is complete
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
  if (!turn) return;
  each_element(cols, rows, [&](int r, int c) {
    x[(tile.col0 + r) * item.rows + tile.row0 + c] = turned[c][r];
  });
}

// x <- x / sqrt(sum). blockIdx: some of a matrix; matrix.
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(float* x, const double* sums, std::int64_t numel, bool in_fours) {
  const double sum = sums[blockIdx.y];
  const float factor = sum == 0.0 ? 0.0f : static_cast<float>(1.0 / sqrt(sum));
  float* const to = x + std::int64_t{blockIdx.y} * numel;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (in_fours) {
    auto* const four = reinterpret_cast<float4*>(to);
    for (std::int64_t i = first; i < numel / 4; i += stride) {
      const float4 v = four[i];
      four[i] = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
    }
  } else {
    for (std::int64_t i = first; i < numel; i += stride) to[i] *= factor;
  }
}

// W <- W keep - step x; parts: sums of squares of x.
__global__ void __launch_bounds__(kThreads)
    subtract_kernel(double* parts, const float* x, const Item* items, std::int64_t n_tiles,
                    float keep, float step) {
  __shared__ float turned[kTile][kTile + 1];
  __shared__ double shared[kThreads / 32];
  const std::int64_t matrix = blockIdx.x / n_tiles;
  const Item item = items[matrix];
  const Tile tile(item, blockIdx.x - matrix * n_tiles);
  const std::int64_t rows = min(std::int64_t{kTile}, item.rows - tile.row0);
  const std::int64_t cols = min(std::int64_t{kTile}, item.cols - tile.col0);
  const bool turn = item.rows > item.cols;
  x += matrix * item.rows * item.cols;
  if (turn) {
    each_element(cols, rows, [&](int r, int c) {
      turned[c][r] = x[(tile.col0 + r) * item.rows + tile.row0 + c];
    });
    __syncthreads();
  }
  double sum = 0;
  each_element(rows, cols, [&](int r, int c) {
    const std::int64_t at = (tile.row0 + r) * item.cols + tile.col0 + c;
    const float v = turn ? turned[r][c] : x[at];
    item.weight[at] = __fsub_rn(__fmul_rn(item.weight[at], keep), __fmul_rn(step, v));
    sum = fma(static_cast<double>(v), static_cast<double>(v), sum);
  });
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

struct Batch {
  std::vector<Item> items;
  std::vector<std::int64_t> first;  // tile of each matrix, and their number
  std::int64_t n_tiles = 0;         // of one matrix

  [[nodiscard]] std::int64_t n_matrices() const { return static_cast<std::int64_t>(items.size()); }
};

// Checks the shapes against x [n, short, long].
Batch batch_of(const TensorView& x, std::span<const MuonMatrix> matrices) {
  HADAL_CHECK(x.shape().rank() == 3 && x.dim(0) == static_cast<std::int64_t>(matrices.size()) &&
              x.dim(1) <= x.dim(2));
  Batch batch;
  batch.n_tiles = ceil_div(x.dim(1), kTile) * ceil_div(x.dim(2), kTile);
  batch.first.push_back(0);
  for (const MuonMatrix& m : matrices) {
    const Shape& shape = m.weight.shape();
    HADAL_CHECK(m.gradient.shape() == shape && m.momentum.shape() == shape);
    HADAL_CHECK(std::min(shape[0], shape[1]) == x.dim(1) &&
                std::max(shape[0], shape[1]) == x.dim(2));
    batch.items.push_back({.weight = data<float>(m.weight),
                           .momentum = data<float>(m.momentum),
                           .gradient = data<const float>(m.gradient),
                           .rows = static_cast<std::int32_t>(shape[0]),
                           .cols = static_cast<std::int32_t>(shape[1])});
    batch.first.push_back(batch.first.back() + batch.n_tiles);
  }
  return batch;
}

}  // namespace

void muon_momentum(Stream& stream, const MuonMomentumArgs& a) {
  const Batch batch = batch_of(a.x, a.matrices);
  if (batch.items.empty()) return;
  const std::int64_t numel = a.x.dim(1) * a.x.dim(2);
  const Tensor scratch = stream.cuda().scratch((batch.first.back() + batch.n_matrices()) * 8);
  auto* const parts = reinterpret_cast<double*>(scratch.bytes());
  double* const sums = parts + batch.first.back();
  launch(stream, "muon_momentum", look_ahead_kernel,
         {dim3(blocks_for(batch.first.back(), 1)), dim3(kThreads)}, parts, data<float>(a.x),
         stream.cuda().stage(std::span<const Item>(batch.items)), batch.n_tiles, a.momentum,
         a.gradient_scale);
  sum_parts(stream, sums, parts, batch.first);
  constexpr std::int64_t kMatricesAtOnce = 65535;  // blockIdx.y
  for (std::int64_t i = 0; i < batch.n_matrices(); i += kMatricesAtOnce) {
    const std::int64_t n = std::min(kMatricesAtOnce, batch.n_matrices() - i);
    launch(stream, "muon_momentum", normalise_kernel,
           {dim3(blocks_for(numel, kThreads * 16), static_cast<unsigned>(n)), dim3(kThreads)},
           data<float>(a.x) + i * numel, static_cast<const double*>(sums + i), numel,
           in_groups(numel, 4, a.x));
  }
}

void muon_update(Stream& stream, const MuonUpdateArgs& a) {
  HADAL_CHECK(a.sums.size() == a.matrices.size());
  const Batch batch = batch_of(a.x, a.matrices);
  if (batch.items.empty()) return;
  const double scale = a.gamma * std::sqrt(static_cast<double>(a.x.dim(2)));
  const auto keep = static_cast<float>(1.0 - a.lr * a.weight_decay);
  const auto step = static_cast<float>(a.lr * scale);
  const Tensor scratch = stream.cuda().scratch((batch.first.back() + batch.n_matrices()) * 8);
  launch(stream, "muon_update", subtract_kernel,
         {dim3(blocks_for(batch.first.back(), 1)), dim3(kThreads)},
         reinterpret_cast<double*>(scratch.bytes()), data<const float>(a.x),
         stream.cuda().stage(std::span<const Item>(batch.items)), batch.n_tiles, keep, step);
  download_sums(stream, scratch, batch.first, a.sums);
  for (double& sum : a.sums) sum *= scale * scale;
}

}  // namespace hadal::kernels::cuda
