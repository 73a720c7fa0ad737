#include "kernels/muon.h"

#include <cmath>

#include "kernels/cpu/chunks.h"

namespace hadal::kernels::cpu {

namespace {

// Rows of a matrix that are worked on at once: 64 KiB, so that turning them stays in the cache.
std::int64_t rows_at_once(std::int64_t cols) {
  return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, cols));
}

// M <- mu M + s G and N <- mu M + s G; the sum of squares of N.
HADAL_SIMD_CLONES double look_ahead(float* ahead, float* momentum, const float* gradient,
                                    std::int64_t n, float mu, float gradient_scale) {
  return lane_sum_f64(n, [=](std::int64_t i) {
    const float g = gradient[i] * gradient_scale;
    const float m = mu * momentum[i] + g;
    const float x = mu * m + g;
    momentum[i] = m;
    ahead[i] = x;
    return static_cast<double>(x) * x;
  });
}

HADAL_SIMD_CLONES void multiply(float* x, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// w <- w keep - step x; the sum of squares of x.
HADAL_SIMD_CLONES double subtract(float* w, const float* x, std::int64_t n, float keep,
                                  float step) {
  return lane_sum_f64(n, [=](std::int64_t i) {
    w[i] = w[i] * keep - step * x[i];
    return static_cast<double>(x[i]) * x[i];
  });
}

// to[c, r] = from[r, c]; both as far apart as their strides say.
void transpose(float* to, std::int64_t to_stride, const float* from, std::int64_t from_stride,
               std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kTile = 16;
  for (std::int64_t c0 = 0; c0 < cols; c0 += kTile) {
    const std::int64_t c_end = std::min(c0 + kTile, cols);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = c0; c < c_end; ++c) to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

struct Batch {
  std::vector<std::int64_t> rows, chunks;  // of each matrix; a chunk in rows
};

// Checks the shapes against x [n, short, long].
Batch batch_of(const TensorView& x, std::span<const MuonMatrix> matrices) {
  HADAL_CHECK(x.shape().rank() == 3 && x.dim(0) == static_cast<std::int64_t>(matrices.size()) &&
              x.dim(1) <= x.dim(2));
  Batch batch;
  for (const MuonMatrix& m : matrices) {
    const Shape& shape = m.weight.shape();
    HADAL_CHECK(m.gradient.shape() == shape && m.momentum.shape() == shape);
    HADAL_CHECK(std::min(shape[0], shape[1]) == x.dim(1) &&
                std::max(shape[0], shape[1]) == x.dim(2));
    batch.rows.push_back(shape[0]);
    batch.chunks.push_back(rows_at_once(shape[1]));
  }
  return batch;
}

}  // namespace

void muon_momentum(Stream& stream, const MuonMomentumArgs& a) {
  const Batch batch = batch_of(a.x, a.matrices);
  const std::int64_t numel = a.x.dim(1) * a.x.dim(2);
  std::vector<double> sums(a.matrices.size());
  sum_over_chunks(
      stream.pool(), batch.rows, batch.chunks, sums,
      [&](std::size_t i, std::int64_t begin, std::int64_t end) {
        const MuonMatrix& m = a.matrices[i];
        const std::int64_t rows = batch.rows[i], cols = m.weight.dim(1);
        const std::int64_t n = (end - begin) * cols;
        float* momentum = m.momentum.data<float>() + begin * cols;
        const float* gradient = m.gradient.data<const float>() + begin * cols;
        float* x = a.x.data<float>() + static_cast<std::int64_t>(i) * numel;
        if (rows <= cols) {
          return look_ahead(x + begin * cols, momentum, gradient, n, a.momentum, a.gradient_scale);
        }
        std::vector<float> ahead(static_cast<std::size_t>(n));
        const double sum =
            look_ahead(ahead.data(), momentum, gradient, n, a.momentum, a.gradient_scale);
        transpose(x + begin, rows, ahead.data(), cols, end - begin, cols);
        return sum;
      });
  constexpr std::int64_t kPiece = 16384;
  const std::int64_t n_pieces = (numel + kPiece - 1) / kPiece;
  stream.pool().parallel_for(a.x.dim(0) * n_pieces, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t i = p / n_pieces, from = p % n_pieces * kPiece;
      const double sum = sums[static_cast<std::size_t>(i)];
      const float factor = sum == 0.0 ? 0.0f : static_cast<float>(1.0 / std::sqrt(sum));
      multiply(a.x.data<float>() + i * numel + from, std::min(kPiece, numel - from), factor);
    }
  });
}

void muon_update(Stream& stream, const MuonUpdateArgs& a) {
  HADAL_CHECK(a.sums.size() == a.matrices.size());
  const Batch batch = batch_of(a.x, a.matrices);
  const std::int64_t numel = a.x.dim(1) * a.x.dim(2);
  const double scale = a.gamma * std::sqrt(static_cast<double>(a.x.dim(2)));
  const auto keep = static_cast<float>(1.0 - a.lr * a.weight_decay);
  const auto step = static_cast<float>(a.lr * scale);
  sum_over_chunks(stream.pool(), batch.rows, batch.chunks, a.sums,
                  [&](std::size_t i, std::int64_t begin, std::int64_t end) {
                    const MuonMatrix& m = a.matrices[i];
                    const std::int64_t rows = batch.rows[i], cols = m.weight.dim(1);
                    const std::int64_t n = (end - begin) * cols;
                    float* w = m.weight.data<float>() + begin * cols;
                    const float* x = a.x.data<const float>() + static_cast<std::int64_t>(i) * numel;
                    if (rows <= cols) return subtract(w, x + begin * cols, n, keep, step);
                    std::vector<float> turned(static_cast<std::size_t>(n));
                    transpose(turned.data(), cols, x + begin, rows, cols, end - begin);
                    return subtract(w, turned.data(), n, keep, step);
                  });
  for (double& sum : a.sums) sum *= scale * scale;
}

}  // namespace hadal::kernels::cpu
