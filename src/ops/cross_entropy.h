#pragma once

#include "core/quant.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// Next-token cross-entropy of every row, and, with a tape, scale times the gradient of its sum.
//   x        [n_tokens, hidden]  activation dtype: collapsed and normed
//   head     [vocab, hidden]     bf16 | f32
//   targets  [n_tokens] i32      on the host: token ids in [0, vocab), or -1: no loss
//   return   [n_tokens] f32      natural log, unscaled
// A loss: nothing is differentiable through its result. The head's gradient is added at once, x's
// in backward.  Throws invalid_argument on a target outside the vocabulary.
[[nodiscard]] Tensor cross_entropy(ExecContext& ctx, const Tensor& x, const QuantTensor& head,
                                   const Tensor& targets, float scale);

}  // namespace hadal::ops
