#pragma once

#include "kernels/compress_kv.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// Pools per-token projections into one entry per `ratio` positions (see kernels/compress_kv.h) and
// updates each sequence's tail, if it has one. Differentiable in kv, gate and position_bias, for
// sequences that start at position 0; else throws Error unsupported under a tape. Saves kv and
// gate.
//   kv, gate       [n_tokens, q*width] f32, q = 2 with overlap; gate is consumed
//   position_bias  [ratio, q*width] f32
//   return         [n_entries, width] activation dtype, sequence after sequence
[[nodiscard]] Tensor compress_kv(ExecContext& ctx, const Tensor& kv, Tensor gate,
                                 const Tensor& position_bias, bool overlap,
                                 std::span<const CompressSequence> sequences);

}  // namespace hadal::ops
