#pragma once

#include <span>

#include "ops/exec_context.h"

namespace hadal::ops {

// y[t, j, :] = streams[t, j, :] + x[t, :], one rounding. The MTP block's input. Differentiable.
//   streams [n_tokens, n, hidden], x [n_tokens, hidden], activation dtype
[[nodiscard]] Tensor add_to_streams(ExecContext& ctx, const Tensor& streams, const Tensor& x);

// y = x * factor, one rounding; x f32 or activation dtype, y of x's dtype. Differentiable.
[[nodiscard]] Tensor scale(ExecContext& ctx, const Tensor& x, float factor);

// The same values in memory of their own. The copy is no variable of a tape: an op that works in
// place takes one first when its input must stay as it is for backward.
[[nodiscard]] Tensor copy(ExecContext& ctx, const Tensor& x);

// Rows of several tensors [n_tokens, n, hidden], alike in dtype, n and hidden, one below the other.
// One part alone is returned as it is. At least one part. Not differentiable.
[[nodiscard]] Tensor concat_rows(ExecContext& ctx, std::span<const Tensor> parts);

}  // namespace hadal::ops
