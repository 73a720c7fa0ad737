#pragma once

#include "ops/exec_context.h"

namespace hadal::ops {

// y = x / sqrt(mean(x^2) + eps) * weight, along the last axis, accumulated in f32, one rounding.
//   x       [..., n]  activation dtype
//   weight  [n]       f32
//   return  shape and dtype of x
// Differentiable in x and weight; saves x.
// Throws invalid_argument on a shape mismatch.  Source: Zhang & Sennrich 2019, eq. 4.
[[nodiscard]] Tensor rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& weight, float eps);

// The norm of every query head, without a weight. Official numerics round after each operation as
// the reference does; the gradient is that of the plain formula.  Source: architecture.md §3.4.
//   x       [n_tokens, n_heads, head_dim]; consumed: the result may share its memory
[[nodiscard]] Tensor head_norm(ExecContext& ctx, Tensor x, float eps);

}  // namespace hadal::ops
