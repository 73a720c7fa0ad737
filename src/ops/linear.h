#pragma once

#include "core/quant.h"
#include "kernels/linear.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// y = x * weight^T, accumulated in f32 in an order that depends on nothing but the element.
//   x       [n_tokens, cols]  activation dtype
//   weight  [rows, cols]      f32 | bf16 | f8_e4m3 | f4_e2m1
//   return  [n_tokens, rows]  dtype of x
// Official numerics round x to E4M3 first when the weight is FP8 or FP4 (architecture.md §5.1-3).
// Differentiable, as its kin below: saves x; straight through the roundings of x and weight.
// Throws invalid_argument on a shape mismatch.
[[nodiscard]] Tensor linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight);

// The same with an f32 result and no rounding of x: gate, compressor, head (architecture.md §2.3).
[[nodiscard]] Tensor linear_f32(ExecContext& ctx, const Tensor& x, const QuantTensor& weight);

// Block-diagonal: columns and rows fall into n_groups equal runs, and x is not quantised whatever
// the weight's format, as the published grouped output projection (architecture.md §3.4.3).
//   x [n_tokens, n_groups * cols], weight [rows, cols], return [n_tokens, rows]
[[nodiscard]] Tensor grouped_linear(ExecContext& ctx, const Tensor& x, const QuantTensor& weight,
                                    std::int64_t n_groups);

}  // namespace hadal::ops
