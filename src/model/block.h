#pragma once

#include <string>

#include "model/attention.h"
#include "model/moe.h"
#include "ops/hyper_connection.h"

namespace hadal::model {

// Narrows the residual streams to one, runs a sub-layer on it, and widens the result back through
// a doubly stochastic mix.  Source: DeepSeek-V4 §2.2 (mHC).
class HyperConnection {
 public:
  HyperConnection(const Config& config, const BoundWeights& weights, const std::string& prefix);

  // streams [n_tokens, hc_mult, hidden] in and out; sublayer: [n_tokens, hidden] to the same.
  template <class Sublayer>
  [[nodiscard]] Tensor around(ExecContext& ctx, const Tensor& streams, Sublayer&& sublayer) const {
    const auto [x, post, comb] = ops::hc_pre(ctx, streams, weights_, options_);
    return ops::hc_post(ctx, sublayer(recompute(ctx, x)), streams, post, comb);
  }

  // The final collapse, for a gate made for it.
  [[nodiscard]] Tensor collapse(ExecContext& ctx, const Tensor& streams) const {
    return ops::hc_head(ctx, streams, weights_, options_);
  }

 private:
  HcWeights weights_;
  ops::HcOptions options_;
};

// One layer: attention, then experts, each inside a hyper-connection.
class Block {
 public:
  // `prefix` names the weights: "layers.7" or "mtp.0".
  Block(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
        const BoundWeights& weights, const std::string& prefix, const ops::RopeFrequencies& rope,
        std::size_t rope_index);

  // streams [n_tokens, hc_mult, hidden] in and out.
  [[nodiscard]] Tensor forward(ExecContext& ctx, const Step& step, const Tensor& streams) const;

 private:
  HyperConnection attn_hc_, ffn_hc_;
  Tensor attn_norm_, ffn_norm_;  // [hidden] f32
  Attention attention_;
  Moe moe_;
  float norm_eps_;
};

}  // namespace hadal::model
