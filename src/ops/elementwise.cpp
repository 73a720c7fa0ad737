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

Tensor concat_rows(ExecContext& ctx, std::span<const Tensor> parts) {
  HADAL_CHECK(!parts.empty());
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
