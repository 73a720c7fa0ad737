// Stored KV rows as one dense matrix, for kernels that read every row many times.
#pragma once

#include <span>

#include "core/device.h"
#include "kernels/kv_rows.h"

namespace hadal::kernels::cuda {

// Rows first, first + 1, ... of a table; numbers wrap at `modulus` unless it is 0.
struct RowRun {
  PagedRows rows;
  std::int64_t first = 0, count = 0, modulus = 0;
};

// [sum of counts, width], one run after another, as f32 or bf16. The values of fp8_mixed and fp4
// rows are exact in both.
[[nodiscard]] Tensor widened_rows(Stream& stream, std::span<const RowRun> runs, std::int64_t width,
                                  DType wanted);

}  // namespace hadal::kernels::cuda
