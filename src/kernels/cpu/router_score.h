// The router's score and its slope.  Source: training.md §2.5, §4.6.
#pragma once

#include <cmath>

namespace hadal::kernels::cpu {

[[nodiscard]] inline float sqrt_softplus(float v) {
  return std::sqrt(v > 20.0f ? v : std::log1p(std::exp(v)));
}

// d sqrt_softplus / dv at v, where it is `score`: sigmoid(v) / (2 * score). Far below zero both are
// tiny and their quotient is e^(v/2) / 2.
[[nodiscard]] inline float sqrt_softplus_slope(float v, float score) {
  if (v < -15.0f) return 0.5f * std::exp(0.5f * v);
  return 0.5f / (score * (1.0f + std::exp(-v)));
}

}  // namespace hadal::kernels::cpu
