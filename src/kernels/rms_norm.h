#pragma once

#include "kernels/registry.h"

namespace hadal {

// y = weight * (x / sqrt(mean(x^2) + eps)) along the last axis, f32 inside, one rounding.
struct RmsNormArgs {
  TensorView y;       // [n_rows, n]  bf16 | f32
  TensorView x;       // [n_rows, n]  dtype of y
  TensorView weight;  // [n]          f32
  float eps;
};
inline constexpr KernelName<RmsNormArgs> kRmsNorm{"rms_norm"};

// The query heads' norm: no weight, in place. bf16 follows the reference operation by operation,
// with a rounding after each (architecture.md §3.4); f32 is the plain formula.
struct HeadNormArgs {
  TensorView x;  // [n_rows, head_dim]
  float eps;
};
inline constexpr KernelName<HeadNormArgs> kHeadNorm{"head_norm"};

}  // namespace hadal
