#include "model/model.h"

#include <algorithm>

#include <fmt/format.h>

#include "model/weights.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace hadal::model {

namespace {

ops::RopeParameters rope_parameters(const Config& config, const RopeSpec& spec) {
  ops::RopeParameters p{.rope_dim = config.qk_rope_head_dim, .theta = spec.theta};
  if (spec.yarn) {
    p.yarn_factor = spec.yarn->factor;
    p.original_max_position_embeddings = spec.yarn->original_max_position_embeddings;
    p.beta_fast = spec.yarn->beta_fast;
    p.beta_slow = spec.yarn->beta_slow;
  }
  return p;
}

// Selected rows of x [n, ...].
Tensor take_rows(ExecContext& ctx, const Tensor& x, std::span<const std::int64_t> rows) {
  const std::int64_t n = static_cast<std::int64_t>(rows.size()), width = x.numel() / x.dim(0);
  const Tensor flat =
      ops::embed(ctx, ops::row_ids(ctx, rows, x.dim(0)), x.reshape({x.dim(0), width}), 1);
  return flat.reshape({n, x.dim(1), width / x.dim(1)});
}

}  // namespace

Model::Model(Config config, const BoundWeights& weights)
    : config_(std::move(config)),
      embed_(weights.plain("embed.weight")),
      head_(weights.linear("head.weight")),
      norm_(as_f32(weights.plain("norm.weight"))) {
  for (std::int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    const LayerSpec& spec = config_.layer(i);
    const std::size_t rope = rope_index(spec.rope);
    layers_.emplace_back(config_, spec, i, weights, fmt::format("layers.{}", i),
                         rope_frequencies_[rope], rope);
  }
  for (std::int64_t i = 0; i < config_.num_nextn_predict_layers; ++i) {
    const LayerSpec& spec = config_.mtp_layer(i);
    const std::size_t rope = rope_index(spec.rope);
    mtp_.emplace_back(config_, spec, config_.num_hidden_layers + i, weights,
                      fmt::format("mtp.{}", i), rope_frequencies_[rope], rope);
  }
  hc_head_.emplace_back(config_, weights, "hc_head");
}

std::size_t Model::rope_index(const RopeSpec& spec) {
  const auto found = std::find(rope_specs_.begin(), rope_specs_.end(), spec);
  if (found != rope_specs_.end()) return static_cast<std::size_t>(found - rope_specs_.begin());
  rope_specs_.push_back(spec);
  rope_frequencies_.push_back(ops::rope_frequencies(rope_parameters(config_, spec)));
  return rope_specs_.size() - 1;
}

Step Model::make_step(ExecContext& ctx, const TokenBatch& batch, KvState& kv,
                      const StepOptions& options) const {
  Step step{.batch = batch,
            .kv = kv,
            .token_ids = ops::row_ids(ctx, batch.token_ids, config_.vocab_size),
            .rope_tables = {},
            .csa_selection = options.csa_selection,
            .observer = options.observer};
  for (const ops::RopeFrequencies& frequencies : rope_frequencies_) {
    step.rope_tables.push_back(ops::rope_table(ctx, frequencies, batch.positions));
  }
  return step;
}

Tensor Model::embed(ExecContext& ctx, const Step& step) const {
  return ops::embed(ctx, step.token_ids, embed_, config_.hc_mult);
}

Tensor Model::forward(ExecContext& ctx, const TokenBatch& batch, KvState& kv,
                      const LayerObserver& observer, const StepOptions& options) const {
  const Step step = make_step(ctx, batch, kv, options);
  Tensor streams = embed(ctx, step);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    streams = layers_[i].forward(ctx, step, streams);
    if (observer) observer(static_cast<std::int64_t>(i), streams);
  }
  return streams;
}

Tensor Model::collapse(ExecContext& ctx, const Tensor& streams) const {
  return ops::rms_norm(ctx, hc_head_.front().collapse(ctx, streams), norm_, config_.rms_norm_eps);
}

Tensor Model::logits(ExecContext& ctx, const Tensor& streams,
                     std::span<const std::int64_t> rows) const {
  return ops::linear_f32(ctx, collapse(ctx, take_rows(ctx, streams, rows)), head_);
}

Tensor Model::mtp_forward(ExecContext& ctx, std::int64_t depth, const TokenBatch& batch,
                          KvState& kv, const Tensor& streams, std::span<const TokenId> next_ids,
                          const StepOptions& options) const {
  const Step step = make_step(ctx, batch, kv, options);
  const Tensor next = ops::embed(ctx, ops::row_ids(ctx, next_ids, config_.vocab_size), embed_, 1);
  return mtp_[static_cast<std::size_t>(depth)].forward(ctx, step, streams, next);
}

Tensor Model::mtp_collapse(ExecContext& ctx, std::int64_t depth, const Tensor& streams) const {
  return mtp_[static_cast<std::size_t>(depth)].collapse(ctx, streams);
}

Tensor Model::mtp_logits(ExecContext& ctx, std::int64_t depth, const Tensor& streams,
                         std::span<const std::int64_t> rows) const {
  const Tensor kept = take_rows(ctx, streams, rows);
  return ops::linear_f32(ctx, mtp_collapse(ctx, depth, kept), head_);
}

}  // namespace hadal::model
