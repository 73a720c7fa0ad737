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

// Gradients of rms_norm, and with an empty weight and dweight of the weightless norm of x.
// With r = 1 / sqrt(mean(x^2) + eps) and g = weight * dy:
//   dx = r * (g - x * r^2 * mean(g * x)),   dweight += sum over rows of dy * x * r
// Source: training.md §4.1.
struct RmsNormBackwardArgs {
  TensorView dx;       // [n_rows, n]  f32, out; empty: not wanted
  TensorView dweight;  // [n]          f32, added to; empty: not wanted
  TensorView dy;       // [n_rows, n]  f32
  TensorView x;        // [n_rows, n]  bf16 | f32
  TensorView weight;   // [n]          f32; empty: all ones
  float eps;
};
inline constexpr KernelName<RmsNormBackwardArgs> kRmsNormBackward{"rms_norm_backward"};

}  // namespace hadal
