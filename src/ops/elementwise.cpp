#include "ops/elementwise.h"

#include "kernels/elementwise.h"

namespace hadal::ops {

Tensor add_to_streams(ExecContext& ctx, const Tensor& streams, const Tensor& x) {
  expect_shape(x, {streams.dim(0), streams.dim(2)}, "add_to_streams: x");
  Tensor y = ctx.empty(streams.shape(), streams.dtype());
  ctx.launch(kAddToStreams, y.dtype(), AddToStreamsArgs{.y = y, .streams = streams, .x = x});
  if (Tape* tape = ctx.tape_for(streams, x)) {
    y = tape->variable(y);
    tape->record({.name = "add_to_streams",
                  .inputs = {streams, x},
                  .outputs = {y},
                  .backward =
                      [](Backward& b) {
                        const Tensor dy = b.gradient(0);
                        if (b.wants(1)) {
                          const Tensor dx = b.ctx().empty({dy.dim(0), dy.dim(2)}, DType::f32);
                          b.ctx().launch(kSumStreams, DType::f32, SumStreamsArgs{.x = dx, .y = dy});
                          b.accumulate(1, dx);
                        }
                        b.accumulate(0, dy);
                      },
                  .replay = [](ExecContext& c, const TensorList& in) -> TensorList {
                    return {add_to_streams(c, in[0], in[1])};
                  }});
  }
  return y;
}

Tensor scale(ExecContext& ctx, const Tensor& x, float factor) {
  Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kScale, y.dtype(), ScaleArgs{.y = y, .x = x, .factor = factor});
  if (Tape* tape = ctx.tape_for(x)) {
    y = tape->variable(y);
    tape->record({.name = "scale",
                  .inputs = {x},
                  .outputs = {y},
                  .backward =
                      [factor](Backward& b) {
                        const Tensor dy = b.gradient(0);
                        b.ctx().launch(kScale, DType::f32,
                                       ScaleArgs{.y = dy, .x = dy, .factor = factor});
                        b.accumulate(0, dy);
                      },
                  .replay = [factor](ExecContext& c, const TensorList& in) -> TensorList {
                    return {scale(c, in[0], factor)};
                  }});
  }
  return y;
}

Tensor copy(ExecContext& ctx, const Tensor& x) {
  const Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kCopy, y.dtype(), CopyArgs{.y = y, .x = x});
  return y;
}

Tensor concat_rows(ExecContext& ctx, std::span<const Tensor> parts) {
  HADAL_CHECK(!parts.empty());
  for (const Tensor& part : parts) HADAL_CHECK(ctx.tape_for(part) == nullptr);
  if (parts.size() == 1) return parts.front();
  const Tensor& first = parts.front();
  std::int64_t rows = 0;
  for (const Tensor& part : parts) {
    HADAL_CHECK(part.dtype() == first.dtype());
    expect_shape(part, {part.dim(0), first.dim(1), first.dim(2)}, "concat_rows");
    rows += part.dim(0);
  }
  Tensor y = ctx.empty({rows, first.dim(1), first.dim(2)}, first.dtype());
  std::int64_t row = 0;
  for (const Tensor& part : parts) {
    ctx.launch(kCopy, y.dtype(), CopyArgs{.y = y.slice(row, row + part.dim(0)), .x = part});
    row += part.dim(0);
  }
  return y;
}

}  // namespace hadal::ops
