// Host codec of KV rows.
#pragma once

#include "kernels/kv_rows.h"

namespace hadal::kernels::cpu {

// Rows [first, first + n) of `rows` as `out` [n, width]: bf16 for fp8_mixed (exact), f32 for f32.
template <class T>
void decode_rows(const PagedRows& rows, std::int64_t first, std::int64_t n, T* out);

// One row.
template <class T>
void decode_row(const PagedRows& rows, std::int64_t row, T* out);

}  // namespace hadal::kernels::cpu
