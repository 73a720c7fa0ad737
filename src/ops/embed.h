#pragma once

#include <span>

#include "ops/exec_context.h"

namespace hadal::ops {

// Numbers of rows, for kernels: [ids.size()] i32. Throws Error invalid_argument when one is outside
// [0, end), which a kernel could not say.
[[nodiscard]] Tensor row_ids(ExecContext& ctx, std::span<const std::int32_t> ids, std::int64_t end);
[[nodiscard]] Tensor row_ids(ExecContext& ctx, std::span<const std::int64_t> ids, std::int64_t end);

// Rows of `table`, each copied to `n_streams` streams.
//   ids     [n_tokens] i32, of row_ids()
//   table   [vocab, hidden] bf16 | f32
//   return  [n_tokens, n_streams, hidden], activation dtype
[[nodiscard]] Tensor embed(ExecContext& ctx, const Tensor& ids, const Tensor& table,
                           std::int64_t n_streams);

}  // namespace hadal::ops
