#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

struct AdamwParameter {
  TensorView weight, gradient, mean, variance;  // f32, one shape; all but gradient in/out
  double weight_decay;
};

// m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
// u = (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps),  w <- w (1 - lr decay) - lr u,
// where g is gradient_scale times the gradient. v = 0 gives u = 0: eps is 1e-20, far below what a
// gradient that underflowed has lost.  Source: DeepSeek-V4 §4.2.2; training.md §1.3.
struct AdamwArgs {
  std::span<const AdamwParameter> parameters;
  std::int64_t step;  // 1 on the first
  double lr, beta1, beta2, eps;
  float gradient_scale;
  std::span<double> sums;  // [parameters] out: of squares of u
};
inline constexpr KernelName<AdamwArgs> kAdamw{"adamw"};

}  // namespace hadal
