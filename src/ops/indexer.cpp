#include "ops/indexer.h"

#include <bit>

#include <fmt/format.h>

namespace hadal::ops {

namespace {
TensorView as_rows(const Tensor& x) {
  const std::int64_t n = x.dim(x.shape().rank() - 1);
  return x.view().reshape({x.numel() / n, n});
}
}  // namespace

Tensor hadamard(ExecContext& ctx, Tensor x) {
  const TensorView rows = as_rows(x);
  if (!std::has_single_bit(static_cast<std::uint64_t>(rows.dim(1)))) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("hadamard: {} columns; a Walsh-Hadamard matrix needs a power of two",
                            rows.dim(1)));
  }
  ctx.launch(kHadamard, x.dtype(), HadamardArgs{.x = rows});
  return x;
}

Tensor fake_quantize_fp4(ExecContext& ctx, Tensor x) {
  ctx.launch(kFakeQuantizeFp4, x.dtype(), FakeQuantizeFp4Args{.x = as_rows(x)});
  return x;
}

Tensor index_topk(ExecContext& ctx, const Tensor& q, const Tensor& weights, std::int64_t topk,
                  std::int64_t ratio, std::span<const IndexSequence> sequences) {
  expect_shape(weights, {q.dim(0), q.dim(1)}, "index_topk: weights");
  Tensor selected = ctx.empty({q.dim(0), topk}, DType::i32);
  ctx.launch(kIndexTopk, q.dtype(),
             IndexTopkArgs{.selected = selected,
                           .q = q,
                           .weights = weights,
                           .ratio = ratio,
                           .sequences = sequences});
  return selected;
}

}  // namespace hadal::ops
