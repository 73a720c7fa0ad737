#pragma once

#include <vector>

#include "model/config.h"
#include "model/step.h"
#include "model/weight_layout.h"
#include "ops/moe.h"

namespace hadal::model {

// Mixture of experts: a router, by learned scores or by a table of token ids, the routed experts
// and the shared one.  Source: DeepSeek-V4 §2.1; architecture.md §3.7.
class Moe {
 public:
  // `prefix` names the weights: "layers.7.ffn".
  Moe(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
      const BoundWeights& weights, const std::string& prefix);

  [[nodiscard]] Tensor forward(ExecContext& ctx, const Step& step, const Tensor& x) const;

 private:
  [[nodiscard]] ops::Routing route(ExecContext& ctx, const Step& step, const Tensor& logits) const;

  std::int64_t layer_index_;
  QuantTensor gate_;     // [n_experts, hidden]
  Tensor bias_;          // [n_experts] f32, learned routing
  Tensor expert_table_;  // [vocab, topk] i32, hash routing
  std::vector<ExpertWeights> routed_, shared_;
  std::int64_t topk_;
  float scaling_factor_;
  ops::SwigluLimits limits_;
};

}  // namespace hadal::model
