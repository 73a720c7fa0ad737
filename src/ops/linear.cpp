#include "ops/linear.h"

namespace hadal::ops {

namespace {

struct LinearSpec {
  DType out;
  std::int64_t n_groups;
  ActivationQuant quant;
};

Tensor run(ExecContext& ctx, const Tensor& x, const QuantTensor& weight, const LinearSpec& spec) {
  expect_shape(x, {x.dim(0), spec.n_groups * weight.cols()}, "linear: x");
  Tensor y = ctx.empty({x.dim(0), weight.rows()}, spec.out);
  ctx.launch(kLinear, x.dtype(),
             LinearArgs{.y = y,
                        .x = x,
                        .weight = &weight,
                        .n_groups = spec.n_groups,
                        .activation_quant = spec.quant});
  if (Tape* tape = ctx.tape_for(x, weight.data)) {
    y = tape->variable(y);
    tape->record({.name = "linear",
                  .inputs = {x, weight.data},
                  .outputs = {y},
                  .backward =
                      [x = tape->save(x), weight, spec](Backward& b) {
                        const Tensor input = b.get(x);
                        const Tensor dx =
                            b.wants(0) ? b.ctx().empty(input.shape(), DType::f32) : Tensor();
                        b.ctx().launch(kLinearBackward, input.dtype(),
                                       LinearBackwardArgs{.dx = dx,
                                                          .dweight = b.target(1),
                                                          .dy = b.gradient(0),
                                                          .x = input,
                                                          .weight = &weight,
                                                          .n_groups = spec.n_groups,
                                                          .activation_quant = spec.quant});
                        if (dx) b.accumulate(0, dx);
                      },
                  .replay = [weight, spec](ExecContext& c, const TensorList& in) -> TensorList {
                    return {run(c, in[0], weight, spec)};
                  }});
  }
  return y;
}

}  // namespace

Tensor linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight) {
  const DType stored = weight.data.dtype();
  const bool quantised = stored == DType::f8_e4m3 || stored == DType::f4_e2m1;
  const bool official = ctx.numerics() == Numerics::official;
  const ActivationQuant quant =
      official && quantised ? ActivationQuant::fp8_block128 : ActivationQuant::none;
  return run(ctx, x, weight, {.out = x.dtype(), .n_groups = 1, .quant = quant});
}

Tensor linear_f32(ExecContext& ctx, const Tensor& x, const QuantTensor& weight) {
  return run(ctx, x, weight, {.out = DType::f32, .n_groups = 1, .quant = ActivationQuant::none});
}

Tensor grouped_linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight,
                      std::int64_t n_groups) {
  return run(ctx, x, weight,
             {.out = x.dtype(), .n_groups = n_groups, .quant = ActivationQuant::none});
}

}  // namespace hadal::ops
