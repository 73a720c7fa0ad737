#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace hadal::kernels::cpu {

// out[h, c] = out[h, c] + sum_j p[h*p_stride + j] * rows[j, c], j ascending: one chain a channel,
// so the result does not depend on vector width, head blocking or what else is in the batch.
//   out [n_heads, width] f32, rows [n_rows, width]
void accumulate_values(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                       const bf16* rows, std::int64_t n_rows, std::int64_t width);
void accumulate_values(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                       const float* rows, std::int64_t n_rows, std::int64_t width);

}  // namespace hadal::kernels::cpu
