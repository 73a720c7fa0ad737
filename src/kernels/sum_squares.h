#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

// sums[i] = the sum of squares of tensors[i], in f64 and in a fixed order. No f32 is large enough
// to overflow it: it is finite exactly when every element is.
struct SumSquaresArgs {
  std::span<const TensorView> tensors;  // f32
  std::span<double> sums;               // one a tensor
};
inline constexpr KernelName<SumSquaresArgs> kSumSquares{"sum_squares"};

}  // namespace hadal
