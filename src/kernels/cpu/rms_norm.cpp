#include "kernels/rms_norm.h"

#include <cmath>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

template <class T>
HADAL_SIMD_CLONES void norm_rows(T* y, const T* x, const float* weight, std::int64_t rows,
                                 std::int64_t n, float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += n, y += n) {
    const float sum = lane_sum(n, [&](std::int64_t i) { return load(x[i]) * load(x[i]); });
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    for (std::int64_t i = 0; i < n; ++i) y[i] = store<T>(weight[i] * (load(x[i]) * scale));
  }
}
template void norm_rows<float>(float*, const float*, const float*, std::int64_t, std::int64_t,
                               float);
template void norm_rows<bf16>(bf16*, const bf16*, const float*, std::int64_t, std::int64_t, float);

// rounded<T> is the identity for f32, so one text is both the reference's five roundings and the
// plain formula.
template <class T>
HADAL_SIMD_CLONES void head_norm_rows(T* x, std::int64_t rows, std::int64_t n, float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += n) {
    const float sum =
        lane_sum(n, [&](std::int64_t i) { return rounded<T>(load(x[i]) * load(x[i])); });
    const float mean = rounded<T>(sum / static_cast<float>(n));
    const float scale = rounded<T>(1.0f / std::sqrt(rounded<T>(mean + eps)));
    for (std::int64_t i = 0; i < n; ++i) x[i] = store<T>(load(x[i]) * scale);
  }
}
template void head_norm_rows<float>(float*, std::int64_t, std::int64_t, float);
template void head_norm_rows<bf16>(bf16*, std::int64_t, std::int64_t, float);

}  // namespace

void rms_norm(Stream& stream, const RmsNormArgs& a) {
  const std::int64_t n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 8, [&](std::int64_t begin, std::int64_t end) {
      norm_rows<T>(a.y.data<T>() + begin * n, a.x.data<T>() + begin * n,
                   a.weight.data<const float>(), end - begin, n, a.eps);
    });
  });
}

void head_norm(Stream& stream, const HeadNormArgs& a) {
  const std::int64_t n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
      head_norm_rows<T>(a.x.data<T>() + begin * n, end - begin, n, a.eps);
    });
  });
}

}  // namespace hadal::kernels::cpu
