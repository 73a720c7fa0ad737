#include "ops/rms_norm.h"

#include "kernels/rms_norm.h"

namespace hadal::ops {

namespace {
TensorView as_rows(const Tensor& x, std::int64_t n) {
  return x.view().reshape({x.numel() / n, n});
}
}  // namespace

Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps) {
  const std::int64_t n = x.dim(x.shape().rank() - 1);
  expect_shape(weight, {n}, "rms_norm: weight");
  Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kRmsNorm, x.dtype(),
             RmsNormArgs{.y = as_rows(y, n), .x = as_rows(x, n), .weight = weight, .eps = eps});
  return y;
}

Tensor head_norm(ExecContext& ctx, Tensor x, float eps) {
  ctx.launch(kHeadNorm, x.dtype(), HeadNormArgs{.x = as_rows(x, x.dim(2)), .eps = eps});
  return x;
}

}  // namespace hadal::ops
