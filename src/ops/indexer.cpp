#include "ops/indexer.h"

#include <bit>

#include <fmt/format.h>

#include "ops/elementwise.h"

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
  Tape* tape = ctx.tape_for(x);
  Tensor y = tape != nullptr ? copy(ctx, x) : x;
  ctx.launch(kHadamard, y.dtype(), HadamardArgs{.x = as_rows(y)});
  if (tape != nullptr) {
    y = tape->variable(y);
    tape->record({.name = "hadamard",
                  .inputs = {x},
                  .outputs = {y},
                  .backward =
                      [](Backward& b) {
                        // The matrix is symmetric.
                        const Tensor dy = b.gradient(0);
                        b.ctx().launch(kHadamard, DType::f32, HadamardArgs{.x = as_rows(dy)});
                        b.accumulate(0, dy);
                      },
                  .replay = [](ExecContext& c, const TensorList& in) -> TensorList {
                    return {hadamard(c, copy(c, in[0]))};
                  }});
  }
  return y;
}

Tensor fake_quantize_fp4(ExecContext& ctx, Tensor x) {
  Tape* tape = ctx.tape_for(x);
  Tensor y = tape != nullptr ? copy(ctx, x) : x;
  ctx.launch(kFakeQuantizeFp4, y.dtype(), FakeQuantizeFp4Args{.x = as_rows(y)});
  if (tape != nullptr) {
    y = tape->variable(y);
    tape->record({.name = "fake_quantize_fp4",
                  .inputs = {x},
                  .outputs = {y},
                  .backward = [](Backward& b) { b.accumulate(0, b.gradient(0)); },
                  .replay = [](ExecContext& c, const TensorList& in) -> TensorList {
                    return {fake_quantize_fp4(c, copy(c, in[0]))};
                  }});
  }
  return y;
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
