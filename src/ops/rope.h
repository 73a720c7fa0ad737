#pragma once

#include <span>

#include "kernels/rope.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// Angles per token position of one kind of layer.  Source: architecture.md §1.3.
struct RopeFrequencies {
  std::vector<float> inverse_wavelength;  // f_i, one per pair
};

struct RopeParameters {
  std::int64_t rope_dim = 0;  // rotated columns, twice the number of pairs
  double theta = 10000.0;
  // YaRN, off when factor is 1 or less. No attention temperature goes with it.
  double yarn_factor = 1.0;
  std::int64_t original_max_position_embeddings = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
};
[[nodiscard]] RopeFrequencies rope_frequencies(const RopeParameters& parameters);

// cos and sin of fl(position * f_i), each rounded once.
//   return  [n, n_pairs, 2] f32
[[nodiscard]] Tensor rope_table(ExecContext& ctx, const RopeFrequencies& frequencies,
                                std::span<const std::int64_t> positions);

// Rotates the last 2*n_pairs columns of every head, interleaved pairs.
// Differentiable in x.
//   x      [n_tokens, n_heads, width]; consumed: the result may share its memory
//   table  [n_tokens, n_pairs, 2] f32
[[nodiscard]] Tensor rope(ExecContext& ctx, Tensor x, const Tensor& table,
                          RopeDirection direction = RopeDirection::forward);

}  // namespace hadal::ops
