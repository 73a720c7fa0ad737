// One product of 64 x 128 by 256 x 128 through every instruction that multiplies, each output its
// own chain over the columns in order.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/cuda/queue.h"

namespace hadal::test {

inline constexpr int kBitsRows = 64, kBitsTokens = 256, kBitsCols = 128;

struct BitsVariant {
  std::string name;
  int n = 0;  // tokens of an instruction; only the first n columns of `sums` are written
  std::vector<float> sums;  // [kBitsRows][kBitsTokens]
};

// a [kBitsRows][kBitsCols] and b [kBitsTokens][kBitsCols] on the host, bf16 or E4M3.
[[nodiscard]] std::vector<BitsVariant> multiply_in_every_way(cuda::Queue& queue, const void* a,
                                                             const void* b, bool e4m3);

}  // namespace hadal::test
