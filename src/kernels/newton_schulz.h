#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/registry.h"

namespace hadal {

// One step X <- a X + b (X X') X + c (X X')^2 X: an odd polynomial of every singular value.
struct NewtonSchulzStep {
  float a, b, c;
  friend bool operator==(const NewtonSchulzStep&, const NewtonSchulzStep&) = default;
};

// Eight steps that grow small singular values fast, then two that pull everything near 1 onto 1.
// Values s >= 1e-3 of a matrix of Frobenius norm 1 end in [1, 1.0006].  Source: DeepSeek-V4 §2.4.
inline constexpr std::array<NewtonSchulzStep, 10> kHybridSchedule{{{3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {2.0f, -1.5f, 0.5f},
                                                                   {2.0f, -1.5f, 0.5f}}};

// The five steps of Muon as first published: values s >= 0.03 end in [0.68, 1.21].
// Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
inline constexpr std::array<NewtonSchulzStep, 5> kQuinticSchedule{{{3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f},
                                                                   {3.4445f, -4.7750f, 2.0315f}}};

// Polar Express: each step is the best polynomial for what the steps before it leave, values from
// 1e-3 on. The published coefficients are for norms up to 1 and divided by 1.01, its powers 3 and
// 5, against rounding.  Source: Amsel, Persson, Musco, Gower 2025, arXiv 2505.16932, appendix.
inline constexpr std::array<NewtonSchulzStep, 8> kPolarExpressSchedule{
    {{8.28721201814563f / 1.01f, -23.595886519098837f / 1.030301f,
      17.300387312530933f / 1.0510100501f},
     {4.107059111542203f / 1.01f, -2.9478499167379106f / 1.030301f,
      0.5448431082926601f / 1.0510100501f},
     {3.9486908534822946f / 1.01f, -2.908902115962949f / 1.030301f,
      0.5518191394370137f / 1.0510100501f},
     {3.3184196573706015f / 1.01f, -2.488488024314874f / 1.030301f,
      0.51004894012372f / 1.0510100501f},
     {2.300652019954817f / 1.01f, -1.6689039845747493f / 1.030301f,
      0.4188073119525673f / 1.0510100501f},
     {1.891301407787398f / 1.01f, -1.2679958271945868f / 1.030301f,
      0.37680408948524835f / 1.0510100501f},
     {1.8750014808534479f / 1.01f, -1.2500016453999487f / 1.030301f,
      0.3750001645474248f / 1.0510100501f},
     {1.875f, -1.25f, 0.375f}}};

// Turns each matrix towards the nearest with orthonormal rows, in place. Every matrix of the batch
// gets the bits that it would get alone, on any number of threads. NaN spreads over its own matrix.
struct NewtonSchulzArgs {
  TensorView x;  // [n_matrices, rows, cols]  f32, rows <= cols, Frobenius norms <= 1; in/out
  TensorView workspace;  // [newton_schulz_workspace(...)]  f32
  std::span<const NewtonSchulzStep> schedule;
};
inline constexpr KernelName<NewtonSchulzArgs> kNewtonSchulz{"newton_schulz"};

// Floats.
[[nodiscard]] constexpr std::int64_t newton_schulz_workspace(std::int64_t n_matrices,
                                                             std::int64_t rows, std::int64_t cols) {
  return n_matrices * rows * (cols + 2 * rows);
}

}  // namespace hadal
