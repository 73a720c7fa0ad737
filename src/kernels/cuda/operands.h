// Weights and activations as dense matrices of one type, with the values that the forward
// multiplied: what products of gradients take.
#pragma once

#include <span>
#include <vector>

#include "core/device.h"
#include "core/quant.h"
#include "kernels/activation_quant.h"

namespace hadal::kernels::cuda {

// Of bf16 | f32 memory on the device, valid in stream order while this lives.
struct Operand {
  void* data = nullptr;
  Tensor held;
};

// Whether a product with this weight runs in bf16: not for f32 weights, which some linears of bf16
// activations have on purpose, nor for rows that tensor cores cannot take.
[[nodiscard]] DType operand_type(DType activation, const QuantTensor& weight);

// `wanted` is bf16 or f32. Borrows w where it is that already. Values of FP4 and FP8 with power of
// two scales are exact in bf16.
[[nodiscard]] Operand weight_operand(Stream& stream, const QuantTensor& w, DType wanted);
// The same for many of one shape and format, in one launch.
[[nodiscard]] std::vector<Operand> weight_operands(Stream& stream,
                                                   std::span<const QuantTensor* const> weights,
                                                   DType wanted);

// x [n, cols] (bf16 | f32), rounded to E4M3 by blocks where `quant` says so, then to `wanted`.
[[nodiscard]] Operand rows_operand(Stream& stream, const TensorView& x, ActivationQuant quant,
                                   DType wanted);

}  // namespace hadal::kernels::cuda
