// Between dot.cpp and the files that hold one instruction set each.
#pragma once

#include <cstdint>

#include "kernels/cpu/dot.h"

namespace hadal::kernels::cpu {

// One call of dot_rows, checked: shapes agree, the ranges are inside, nothing is empty.
struct DotTask {
  const std::byte* x = nullptr;  // panel row 0; rows beyond n_rows up to a multiple of 4 are zero
  std::int64_t x_stride = 0;     // elements
  std::int64_t m0 = 0, m1 = 0;
  WeightRows w;
  std::int64_t n0 = 0, n1 = 0;
  float* y = nullptr;
  std::int64_t ldy = 0;
};

void dot_portable(const DotTask& task);
#if defined(__x86_64__)
void dot_avx2(const DotTask& task);
void dot_avx512(const DotTask& task);
void dot_avx512_bf16(const DotTask& task);  // panels with Chain::bf16 only
#endif

}  // namespace hadal::kernels::cpu
