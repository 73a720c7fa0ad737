#pragma once

#include "core/quant.h"
#include "kernels/activation_quant.h"
#include "kernels/registry.h"

namespace hadal {

// y[:, g*rows_g : (g+1)*rows_g] = x[:, g*cols : (g+1)*cols] * weight_g^T, f32 accumulation in a
// fixed order per output element, one rounding to the dtype of y. n_groups = 1 is a plain linear.
struct LinearArgs {
  TensorView y;               // [n_tokens, rows]            bf16 | f32
  TensorView x;               // [n_tokens, n_groups * cols] bf16 | f32
  const QuantTensor* weight;  // [rows, cols]                any storage format
  std::int64_t n_groups = 1;
  ActivationQuant activation_quant = ActivationQuant::none;
};
inline constexpr KernelName<LinearArgs> kLinear{"linear"};

// Gradients of linear, through the roundings of x and of the weight as if they were not there
// (straight through): dx = dy * weight, dweight += dy^T * x, group by group, with the values that
// the forward multiplied.  Source: training.md §3.4, §4.9.
struct LinearBackwardArgs {
  TensorView dx;              // [n_tokens, n_groups * cols]  f32, out; empty: not wanted
  TensorView dweight;         // [rows, cols]                 f32, added to; empty: not wanted
  TensorView dy;              // [n_tokens, rows]             f32
  TensorView x;               // [n_tokens, n_groups * cols]  bf16 | f32
  const QuantTensor* weight;  // [rows, cols]
  std::int64_t n_groups = 1;
  ActivationQuant activation_quant = ActivationQuant::none;
};
inline constexpr KernelName<LinearBackwardArgs> kLinearBackward{"linear_backward"};

}  // namespace hadal
