#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

// A logically independent matrix, the unit of orthogonalisation: all of a parameter or some of its
// rows.  Source: DeepSeek-V4 algorithm 1; training.md §1.1, §1.2.
struct MuonMatrix {
  TensorView weight;    // [rows, cols] f32
  TensorView gradient;  // the same
  TensorView momentum;  // the same
};

// M <- momentum * M + G, N <- momentum * M + G (Nesterov), x <- N / |N|_F, where G is
// gradient_scale times the gradient. A matrix with more rows than columns lies transposed in x, so
// that x has rows <= cols. N = 0 leaves x = 0.
struct MuonMomentumArgs {
  TensorView x;                          // [n, min(rows, cols), max(rows, cols)] f32, out
  std::span<const MuonMatrix> matrices;  // n, of one shape or its transpose; momentum in/out
  float momentum;
  float gradient_scale;
};
inline constexpr KernelName<MuonMomentumArgs> kMuonMomentum{"muon_momentum"};

// W <- W * (1 - lr * weight_decay) - lr * gamma * sqrt(max(rows, cols)) * x. The factor gives the
// update of an orthonormal x an RMS of lr * gamma whatever the shape, so that matrices share the
// learning rate of AdamW.
struct MuonUpdateArgs {
  TensorView x;                          // as above
  std::span<const MuonMatrix> matrices;  // weight in/out
  double lr, weight_decay, gamma;
  std::span<double> sums;  // [n] out: of squares of the update, lr and decay left out
};
inline constexpr KernelName<MuonUpdateArgs> kMuonUpdate{"muon_update"};

}  // namespace hadal
