#include "ops/rms_norm.h"

#include "kernels/rms_norm.h"
#include "ops/elementwise.h"

namespace hadal::ops {

namespace {
TensorView as_rows(const Tensor& x, std::int64_t n) {
  return x ? x.view().reshape({x.numel() / n, n}) : TensorView();
}
}  // namespace

Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps) {
  const std::int64_t n = x.dim(x.shape().rank() - 1);
  expect_shape(weight, {n}, "rms_norm: weight");
  Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kRmsNorm, x.dtype(),
             RmsNormArgs{.y = as_rows(y, n), .x = as_rows(x, n), .weight = weight, .eps = eps});
  if (Tape* tape = ctx.tape_for(x, weight)) {
    y = tape->variable(y);
    tape->record({.name = "rms_norm",
                  .inputs = {x, weight},
                  .outputs = {y},
                  .backward =
                      [x = tape->save(x), weight = weight.detached(), n, eps](Backward& b) {
                        const Tensor input = b.get(x), dweight = b.target(1);
                        const Tensor dx =
                            b.wants(0) ? b.ctx().empty(input.shape(), DType::f32) : Tensor();
                        b.ctx().launch(kRmsNormBackward, input.dtype(),
                                       RmsNormBackwardArgs{.dx = as_rows(dx, n),
                                                           .dweight = dweight,
                                                           .dy = as_rows(b.gradient(0), n),
                                                           .x = as_rows(input, n),
                                                           .weight = weight,
                                                           .eps = eps});
                        if (dx) b.accumulate(0, dx);
                      },
                  .replay = [eps](ExecContext& c, const TensorList& in) -> TensorList {
                    return {rms_norm(c, in[0], in[1], eps)};
                  }});
  }
  return y;
}

Tensor head_norm(ExecContext& ctx, Tensor x, float eps) {
  Tape* tape = ctx.tape_for(x);
  Tensor y = tape != nullptr ? copy(ctx, x) : x;
  ctx.launch(kHeadNorm, y.dtype(), HeadNormArgs{.x = as_rows(y, y.dim(2)), .eps = eps});
  if (tape != nullptr) {
    y = tape->variable(y);
    tape->record({.name = "head_norm",
                  .inputs = {x},
                  .outputs = {y},
                  .backward =
                      [x = tape->save(x), eps](Backward& b) {
                        const Tensor input = b.get(x);
                        const std::int64_t n = input.dim(2);
                        const Tensor dx = b.ctx().empty(input.shape(), DType::f32);
                        b.ctx().launch(kRmsNormBackward, input.dtype(),
                                       RmsNormBackwardArgs{.dx = as_rows(dx, n),
                                                           .dweight = {},
                                                           .dy = as_rows(b.gradient(0), n),
                                                           .x = as_rows(input, n),
                                                           .weight = {},
                                                           .eps = eps});
                        b.accumulate(0, dx);
                      },
                  .replay = [eps](ExecContext& c, const TensorList& in) -> TensorList {
                    return {head_norm(c, copy(c, in[0]), eps)};
                  }});
  }
  return y;
}

}  // namespace hadal::ops
