#include <cmath>
#include <vector>

#include "kernels/cpu/simd.h"
#include "kernels/rms_norm.h"

namespace hadal::kernels::cpu {

namespace {

// Rows of one range: dx, and the range's own sum for dweight.
template <class T>
HADAL_SIMD_INLINE void backward_rows_as(float* dx, float* dweight, const float* dy, const T* x,
                                        const float* weight, std::int64_t rows, std::int64_t n,
                                        float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += n, dy += n) {
    const float sum = lane_sum(n, [&](std::int64_t i) { return load(x[i]) * load(x[i]); });
    const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    if (dweight != nullptr) {
      for (std::int64_t i = 0; i < n; ++i) dweight[i] += dy[i] * (load(x[i]) * inverse);
    }
    if (dx == nullptr) continue;
    const float dot = lane_sum(n, [&](std::int64_t i) { return weight[i] * dy[i] * load(x[i]); });
    const float pull = dot * inverse * inverse / static_cast<float>(n);
    for (std::int64_t i = 0; i < n; ++i) {
      dx[i] = inverse * (weight[i] * dy[i] - load(x[i]) * pull);
    }
    dx += n;
  }
}
HADAL_SIMD_CLONES void backward_rows(float* dx, float* dweight, const float* dy, const float* x,
                                     const float* weight, std::int64_t rows, std::int64_t n,
                                     float eps) {
  backward_rows_as(dx, dweight, dy, x, weight, rows, n, eps);
}
HADAL_SIMD_CLONES void backward_rows(float* dx, float* dweight, const float* dy, const bf16* x,
                                     const float* weight, std::int64_t rows, std::int64_t n,
                                     float eps) {
  backward_rows_as(dx, dweight, dy, x, weight, rows, n, eps);
}

}  // namespace

void rms_norm_backward(Stream& stream, const RmsNormBackwardArgs& a) {
  const std::int64_t rows = a.x.dim(0), n = a.x.dim(1);
  if (rows == 0) return;
  std::vector<float> ones;
  if (!a.weight) ones.assign(static_cast<std::size_t>(n), 1.0f);
  const float* weight = a.weight ? a.weight.data<const float>() : ones.data();
  // Partial sums of fixed ranges, added in their order: the split must not depend on the threads.
  constexpr std::int64_t kRows = 64;
  const std::int64_t ranges = (rows + kRows - 1) / kRows;
  std::vector<float> partial(a.dweight ? static_cast<std::size_t>(ranges * n) : 0, 0.0f);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(ranges, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t r0 = i * kRows, r1 = std::min(rows, r0 + kRows);
        backward_rows(a.dx ? a.dx.data<float>() + r0 * n : nullptr,
                      a.dweight ? partial.data() + i * n : nullptr,
                      a.dy.data<const float>() + r0 * n, a.x.data<const T>() + r0 * n, weight,
                      r1 - r0, n, a.eps);
      }
    });
  });
  if (!a.dweight) return;
  auto* dweight = a.dweight.data<float>();
  for (std::int64_t i = 0; i < ranges; ++i) {
    for (std::int64_t k = 0; k < n; ++k) {
      dweight[k] += partial[static_cast<std::size_t>(i * n + k)];
    }
  }
}

}  // namespace hadal::kernels::cpu
