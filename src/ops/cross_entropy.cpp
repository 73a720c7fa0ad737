#include "ops/cross_entropy.h"

#include <fmt/format.h>

#include "kernels/cross_entropy.h"

namespace hadal::ops {

Tensor cross_entropy(ExecContext& ctx, const Tensor& x, const QuantTensor& head,
                     const Tensor& targets, float scale) {
  expect_shape(x, {x.dim(0), head.cols()}, "cross_entropy: x");
  expect_shape(targets, {x.dim(0)}, "cross_entropy: targets");
  const auto* target = targets.data<const std::int32_t>();
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    if (target[t] >= head.rows()) {
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("cross_entropy: target {} at row {} is outside the vocabulary [0, {})",
                      target[t], t, head.rows()));
    }
  }
  const Tensor device_targets = ctx.to_device(targets);
  Tape* tape = ctx.tape_for(x, head.data);
  Tensor loss = ctx.empty({x.dim(0)}, DType::f32);
  const Tensor dx = tape != nullptr ? ctx.empty(x.shape(), DType::f32) : Tensor();
  const Tensor dhead = tape != nullptr ? tape->parameter_gradient(head.data) : Tensor();
  ctx.launch(kCrossEntropy, x.dtype(),
             CrossEntropyArgs{.loss = loss,
                              .dx = dx,
                              .dhead = dhead,
                              .x = x,
                              .head = &head,
                              .targets = device_targets,
                              .scale = scale});
  if (tape != nullptr) {
    tape->record(
        {.name = "cross_entropy", .inputs = {x}, .outputs = {}, .backward = [dx](Backward& b) {
           b.accumulate(0, dx);
         }});
  }
  return loss;
}

}  // namespace hadal::ops
