#include "ops/linear.h"

namespace hadal::ops {

namespace {

Tensor run(ExecContext& ctx, const Tensor& x, const QuantTensor& weight, DType out,
           std::int64_t n_groups, ActivationQuant quant) {
  expect_shape(x, {x.dim(0), n_groups * weight.cols()}, "linear: x");
  Tensor y = ctx.empty({x.dim(0), weight.rows()}, out);
  ctx.launch(
      kLinear, x.dtype(),
      LinearArgs{
          .y = y, .x = x, .weight = &weight, .n_groups = n_groups, .activation_quant = quant});
  return y;
}

}  // namespace

Tensor linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight) {
  const DType stored = weight.data.dtype();
  const bool quantised = stored == DType::f8_e4m3 || stored == DType::f4_e2m1;
  const bool official = ctx.numerics() == Numerics::official;
  return run(ctx, x, weight, x.dtype(), 1,
             official && quantised ? ActivationQuant::fp8_block128 : ActivationQuant::none);
}

Tensor linear_f32(ExecContext& ctx, const Tensor& x, const QuantTensor& weight) {
  return run(ctx, x, weight, DType::f32, 1, ActivationQuant::none);
}

Tensor grouped_linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight,
                      std::int64_t n_groups) {
  return run(ctx, x, weight, x.dtype(), n_groups, ActivationQuant::none);
}

}  // namespace hadal::ops
