#include "model/block.h"

#include "model/weights.h"
#include "ops/rms_norm.h"

namespace hadal::model {

HyperConnection::HyperConnection(const Config& config, const BoundWeights& weights,
                                 const std::string& prefix)
    : weights_(hc_weights(weights, prefix)),
      options_{.sinkhorn_iters = static_cast<int>(config.hc_sinkhorn_iters),
               .hc_eps = config.hc_eps,
               .norm_eps = config.rms_norm_eps} {}

Block::Block(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
             const BoundWeights& weights, const std::string& prefix,
             const ops::RopeFrequencies& rope, std::size_t rope_index)
    : attn_hc_(config, weights, prefix + ".hc_attn"),
      ffn_hc_(config, weights, prefix + ".hc_ffn"),
      attn_norm_(as_f32(weights.plain(prefix + ".attn_norm.weight"))),
      ffn_norm_(as_f32(weights.plain(prefix + ".ffn_norm.weight"))),
      attention_(config, layer, layer_index, weights, prefix + ".attn", rope, rope_index),
      moe_(config, layer, layer_index, weights, prefix + ".ffn"),
      norm_eps_(config.rms_norm_eps) {}

// Kept for backward: the streams that enter the block and what the two sub-layers add. The streams
// between them and the normed inputs are cheap to make again.  Source: DeepSeek-V4 §3.4.2.
Tensor Block::forward(ExecContext& ctx, const Step& step, const Tensor& streams) const {
  const Tensor h = recompute(ctx, attn_hc_.around(ctx, streams, [&](const Tensor& x) {
    const Tensor normed = recompute(ctx, ops::rms_norm(ctx, x, attn_norm_, norm_eps_));
    return attention_.forward(ctx, step, normed);
  }));
  return ffn_hc_.around(ctx, h, [&](const Tensor& x) {
    return moe_.forward(ctx, step, recompute(ctx, ops::rms_norm(ctx, x, ffn_norm_, norm_eps_)));
  });
}

}  // namespace hadal::model
