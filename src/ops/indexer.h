#pragma once

#include "kernels/indexer.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// Rotates rows by a normalised Walsh-Hadamard matrix and, for queries, rounds them to FP4. Keys
// are rounded when they are stored. Differentiable; rounding passes gradients straight through.
// Source: architecture.md §3.6.1.
//   x  [..., width], width a power of two; consumed: the result may share its memory
[[nodiscard]] Tensor hadamard(ExecContext& ctx, Tensor x);
[[nodiscard]] Tensor fake_quantize_fp4(ExecContext& ctx, Tensor x);

// The topk best entries of every token (see kernels/indexer.h).
//   q        [n_tokens, n_heads, width]  activation dtype
//   weights  [n_tokens, n_heads]         dtype of q
//   return   [n_tokens, topk] i32, ascending, -1 at the end
[[nodiscard]] Tensor index_topk(ExecContext& ctx, const Tensor& q, const Tensor& weights,
                                std::int64_t topk, std::int64_t ratio,
                                std::span<const IndexSequence> sequences);

}  // namespace hadal::ops
