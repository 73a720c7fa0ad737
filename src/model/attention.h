#pragma once

#include <optional>

#include "model/indexer.h"

namespace hadal::model {

// Attention of one layer: low-rank queries, one shared key-value row, a sliding window with sinks,
// and, by the parts that the layer has, compressed entries (compressor) of which the best are
// selected (indexer). The output is rotated back and projected in groups.
// Source: DeepSeek-V4 §2.3; architecture.md §3.4-3.6.
class Attention {
 public:
  // `prefix` names the weights: "layers.7.attn". `rope_index` is the layer's table in Step.
  Attention(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
            const BoundWeights& weights, const std::string& prefix,
            const ops::RopeFrequencies& rope, std::size_t rope_index);

  // x, return  [n_tokens, hidden]; appends this step to the layer's history.
  [[nodiscard]] Tensor forward(ExecContext& ctx, const Step& step, const Tensor& x) const;

 private:
  [[nodiscard]] Tensor queries(ExecContext& ctx, const Tensor& q_latent, const Tensor& rope) const;
  [[nodiscard]] Tensor output(ExecContext& ctx, Tensor o, const Tensor& rope) const;

  std::int64_t layer_index_;
  std::size_t rope_index_;
  std::int64_t n_heads_, head_dim_, window_, o_groups_;
  float norm_eps_;
  QuantTensor q_a_proj_;  // [q_lora_rank, hidden]
  Tensor q_a_norm_;       // [q_lora_rank] f32
  QuantTensor q_b_proj_;  // [n_heads*head_dim, q_lora_rank]
  QuantTensor kv_proj_;   // [head_dim, hidden]
  Tensor kv_norm_;        // [head_dim] f32
  Tensor sinks_;          // [n_heads] f32
  QuantTensor o_a_proj_;  // [o_groups*o_lora_rank, n_heads*head_dim/o_groups]
  QuantTensor o_b_proj_;  // [hidden, o_groups*o_lora_rank]
  std::optional<Compressor> compressor_;
  std::optional<Indexer> indexer_;
};

}  // namespace hadal::model
