// Which rows each expert works on, for the two directions of the mixture.
#pragma once

#include <vector>

#include "core/quant.h"
#include "kernels/activation_quant.h"

namespace hadal::kernels::cpu {

// Assignments (token, slot) sorted by expert, tokens ascending inside an expert.
struct ExpertRows {
  std::vector<std::int32_t> token;       // [n_assignments]
  std::vector<float> weight;             // [n_assignments]
  std::vector<std::int64_t> expert_row;  // [n_experts + 1] first row of each expert
  std::vector<std::int32_t> row_of;      // [n_tokens * topk] row of an assignment
};

// Reuses the memory of `rows`. Throws when an expert is outside [0, n_experts).
void sort_by_expert(const TensorView& experts, const TensorView& weights, std::int64_t n_experts,
                    ExpertRows& rows);

// How a linear of an expert rounds its input of type `activation`.
[[nodiscard]] ActivationQuant expert_input_quant(DType activation, const QuantTensor& w);

}  // namespace hadal::kernels::cpu
