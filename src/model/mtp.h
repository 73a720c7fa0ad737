#pragma once

#include "model/block.h"

namespace hadal::model {

// A multi-token prediction block: from the streams that predicted a token and that token's
// embedding it predicts one further.  Source: DeepSeek-V4 §2 (MTP); architecture.md §3.9.
class MtpBlock {
 public:
  // `prefix` names the weights: "mtp.0". `layer_index` is its place in the KvState.
  MtpBlock(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
           const BoundWeights& weights, const std::string& prefix, const ops::RopeFrequencies& rope,
           std::size_t rope_index);

  // Row t takes the streams after token t and the embedding of token t + 1, at position t.
  //   streams  [n_tokens, hc_mult, hidden]  of the last layer, or of this block when drafting on
  //   next     [n_tokens, 1, hidden]        embeddings of the following tokens
  //   return   [n_tokens, hc_mult, hidden]
  [[nodiscard]] Tensor forward(ExecContext& ctx, const Step& step, const Tensor& streams,
                               const Tensor& next) const;

  // [n_tokens, hidden], ready for the shared head.
  [[nodiscard]] Tensor collapse(ExecContext& ctx, const Tensor& streams) const;

 private:
  Block block_;
  HyperConnection head_;
  Tensor embed_norm_, streams_norm_, final_norm_;  // [hidden] f32
  QuantTensor embed_proj_, streams_proj_;          // [hidden, hidden]
  float norm_eps_;
};

}  // namespace hadal::model
