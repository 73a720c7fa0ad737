#include "kernels/cpu/expert_rows.h"

#include <numeric>

namespace hadal::kernels::cpu {

void sort_by_expert(const TensorView& experts, const TensorView& weights, std::int64_t n_experts,
                    ExpertRows& rows) {
  const std::int64_t n = experts.numel(), topk = experts.dim(1);
  const auto* expert = experts.data<const std::int32_t>();
  const auto* weight = weights.data<const float>();
  rows.expert_row.assign(static_cast<std::size_t>(n_experts + 1), 0);
  for (std::int64_t i = 0; i < n; ++i) {
    HADAL_CHECK(expert[i] >= 0 && expert[i] < n_experts);
    ++rows.expert_row[static_cast<std::size_t>(expert[i]) + 1];
  }
  std::partial_sum(rows.expert_row.begin(), rows.expert_row.end(), rows.expert_row.begin());
  std::vector<std::int64_t> next = rows.expert_row;
  rows.token.resize(static_cast<std::size_t>(n));
  rows.weight.resize(static_cast<std::size_t>(n));
  rows.row_of.resize(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<std::size_t>(next[static_cast<std::size_t>(expert[i])]++);
    rows.token[row] = static_cast<std::int32_t>(i / topk);
    rows.weight[row] = weight[i];
    rows.row_of[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(row);
  }
}

ActivationQuant expert_input_quant(DType activation, const QuantTensor& w) {
  const bool quantised = w.data.dtype() == DType::f8_e4m3 || w.data.dtype() == DType::f4_e2m1;
  return activation == DType::bf16 && quantised ? ActivationQuant::fp8_block128
                                                : ActivationQuant::none;
}

}  // namespace hadal::kernels::cpu
