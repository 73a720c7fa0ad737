#pragma once

#include "kernels/registry.h"

namespace hadal {

// table[t, i] = (cos, sin) of position t times frequency i: the angle is the rounded product, its
// cosine and sine are computed in f64 and rounded once.
struct RopeTableArgs {
  TensorView table;        // [n_tokens, n_pairs, 2]  f32, out
  TensorView positions;    // [n_tokens]              i64
  TensorView frequencies;  // [n_pairs]               f32
};
inline constexpr KernelName<RopeTableArgs> kRopeTable{"rope_table"};

enum class RopeDirection : std::uint8_t { forward, inverse };

// Rotates interleaved pairs of the last 2*n_pairs columns of every row, in place.
//   x'[2i]   = x[2i]*cos_i - x[2i+1]*sin_i
//   x'[2i+1] = x[2i]*sin_i + x[2i+1]*cos_i       (inverse: -sin)
struct RopeArgs {
  TensorView x;      // [n_tokens, n_heads, width]  bf16 | f32
  TensorView table;  // [n_tokens, n_pairs, 2]      f32: cos, sin of the token's position
  RopeDirection direction = RopeDirection::forward;
};
inline constexpr KernelName<RopeArgs> kRope{"rope"};

}  // namespace hadal
