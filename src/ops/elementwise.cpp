#include "ops/elementwise.h"

#include "kernels/elementwise.h"

namespace hadal::ops {

Tensor add_to_streams(ExecContext& ctx, const Tensor& streams, const Tensor& x) {
  expect_shape(x, {streams.dim(0), streams.dim(2)}, "add_to_streams: x");
  Tensor y = ctx.empty(streams.shape(), streams.dtype());
  ctx.launch(kAddToStreams, y.dtype(), AddToStreamsArgs{.y = y, .streams = streams, .x = x});
  return y;
}

Tensor scale(ExecContext& ctx, const Tensor& x, float factor) {
  Tensor y = ctx.empty(x.shape(), x.dtype());
  ctx.launch(kScale, y.dtype(), ScaleArgs{.y = y, .x = x, .factor = factor});
  return y;
}

}  // namespace hadal::ops
