#include "model/mtp.h"

#include "model/weights.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace hadal::model {

MtpBlock::MtpBlock(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
                   const BoundWeights& weights, const std::string& prefix,
                   const ops::RopeFrequencies& rope, std::size_t rope_index)
    : block_(config, layer, layer_index, weights, prefix, rope, rope_index),
      head_(config, weights, prefix + ".hc_head"),
      embed_norm_(as_f32(weights.plain(prefix + ".enorm.weight"))),
      streams_norm_(as_f32(weights.plain(prefix + ".hnorm.weight"))),
      final_norm_(as_f32(weights.plain(prefix + ".norm.weight"))),
      embed_proj_(weights.linear(prefix + ".e_proj.weight")),
      streams_proj_(weights.linear(prefix + ".h_proj.weight")),
      norm_eps_(config.rms_norm_eps) {}

Tensor MtpBlock::forward(ExecContext& ctx, const Step& step, const Tensor& streams,
                         const Tensor& next) const {
  const std::int64_t n_tokens = streams.dim(0), n = streams.dim(1), hidden = streams.dim(2);
  const Tensor e =
      ops::linear(ctx, ops::rms_norm(ctx, next.reshape({n_tokens, hidden}), embed_norm_, norm_eps_),
                  embed_proj_);
  // Every stream is a row of its own for the norm and for the activation scales.
  const Tensor rows =
      ops::rms_norm(ctx, streams.reshape({n_tokens * n, hidden}), streams_norm_, norm_eps_);
  const Tensor h = ops::linear(ctx, rows, streams_proj_).reshape({n_tokens, n, hidden});
  return block_.forward(ctx, step, ops::add_to_streams(ctx, h, e));
}

Tensor MtpBlock::collapse(ExecContext& ctx, const Tensor& streams) const {
  return ops::rms_norm(ctx, head_.collapse(ctx, streams), final_norm_, norm_eps_);
}

}  // namespace hadal::model
