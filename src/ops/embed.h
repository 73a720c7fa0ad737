#pragma once

#include "ops/exec_context.h"

namespace hadal::ops {

// Rows of `table`, each copied to `n_streams` streams.
//   ids     [n_tokens] i32; every id in [0, vocab), or Error invalid_argument
//   table   [vocab, hidden] bf16 | f32
//   return  [n_tokens, n_streams, hidden], activation dtype
[[nodiscard]] Tensor embed(ExecContext& ctx, const Tensor& ids, const Tensor& table,
                           std::int64_t n_streams);

}  // namespace hadal::ops
