#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

template <class T>
HADAL_SIMD_INLINE void norm_rows_as(T* y, const T* x, const float* weight, std::int64_t rows,
                                    std::int64_t n, float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += n, y += n) {
    const float sum = lane_sum(n, [&](std::int64_t i) { return load(x[i]) * load(x[i]); });
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    for (std::int64_t i = 0; i < n; ++i) put(y[i], weight[i] * (load(x[i]) * scale));
  }
}
HADAL_SIMD_CLONES void norm_rows(float* y, const float* x, const float* weight, std::int64_t rows,
                                 std::int64_t n, float eps) {
  norm_rows_as(y, x, weight, rows, n, eps);
}
HADAL_SIMD_CLONES void norm_rows(bf16* y, const bf16* x, const float* weight, std::int64_t rows,
                                 std::int64_t n, float eps) {
  norm_rows_as(y, x, weight, rows, n, eps);
}

// rounded<T> is the identity for f32, so one text is both the reference's five roundings and the
// plain formula.
template <class T>
HADAL_SIMD_INLINE void head_norm_rows_as(T* x, std::int64_t rows, std::int64_t n, float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += n) {
    const float sum =
        lane_sum(n, [&](std::int64_t i) { return rounded<T>(load(x[i]) * load(x[i])); });
    const float mean = rounded<T>(sum / static_cast<float>(n));
    const float scale = rounded<T>(1.0f / std::sqrt(rounded<T>(mean + eps)));
    for (std::int64_t i = 0; i < n; ++i) put(x[i], load(x[i]) * scale);
  }
}
HADAL_SIMD_CLONES void head_norm_rows(float* x, std::int64_t rows, std::int64_t n, float eps) {
  head_norm_rows_as(x, rows, n, eps);
}
HADAL_SIMD_CLONES void head_norm_rows(bf16* x, std::int64_t rows, std::int64_t n, float eps) {
  head_norm_rows_as(x, rows, n, eps);
}

}  // namespace

void rms_norm(Stream& stream, const RmsNormArgs& a) {
  const std::int64_t n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 8, [&](std::int64_t begin, std::int64_t end) {
      norm_rows(a.y.data<T>() + begin * n, a.x.data<T>() + begin * n, a.weight.data<const float>(),
                end - begin, n, a.eps);
    });
  });
}

void head_norm(Stream& stream, const HeadNormArgs& a) {
  const std::int64_t n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
      head_norm_rows(a.x.data<T>() + begin * n, end - begin, n, a.eps);
    });
  });
}

}  // namespace hadal::kernels::cpu
