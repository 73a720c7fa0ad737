#include "train/step_watch.h"

#include "ops/elementwise.h"

namespace hadal::train {

namespace {
double sum(ExecContext& ctx, const Tensor& on_device) {
  const Tensor x = ctx.to_host(on_device);
  double total = 0;
  for (std::int64_t i = 0; i < x.numel(); ++i) total += x.data<const float>()[i];
  return total;
}
}  // namespace

StepWatch::StepWatch(const model::Config& config, WatchOptions options)
    : config_(config), options_(options) {
  layers_.resize(config.layers.size());
  for (Layer& layer : layers_) layer.load.resize(static_cast<std::size_t>(config.n_routed_experts));
}

void StepWatch::begin(std::vector<std::int64_t> bounds, const ExpertChoices* forced) {
  bounds_ = std::move(bounds);
  forced_ = forced;
  choices_.assign(layers_.size(), {});
}

Tensor StepWatch::forced_experts(std::int64_t layer) {
  return forced_ == nullptr ? Tensor() : (*forced_)[static_cast<std::size_t>(layer)];
}

void StepWatch::routed(ExecContext& ctx, std::int64_t layer, const Tensor& logits,
                       const ops::Routing& routing) {
  Layer& seen = layers_[static_cast<std::size_t>(layer)];
  const auto load = ops::expert_load(ctx, routing, config_.n_routed_experts);
  for (std::size_t e = 0; e < load.size(); ++e) seen.load[e] += load[e];
  if (config_.layer(layer).hash_routed) return;  // nothing to balance: ids decide
  if (options_.record_choices) {
    choices_[static_cast<std::size_t>(layer)] = routing.experts.detached();
  }
  if (options_.balance_scale > 0) {
    seen.balance_loss +=
        sum(ctx, ops::balance_loss(ctx, logits, routing, bounds_, options_.balance_scale));
    seen.n_sequences += std::ssize(bounds_) - 1;
  }
}

bool StepWatch::wants_index_scores(std::int64_t) {
  return options_.indexer_scale > 0;
}

void StepWatch::indexed(ExecContext& ctx, std::int64_t layer,
                        const ops::IndexedAttention& attention) {
  Layer& seen = layers_[static_cast<std::size_t>(layer)];
  const ops::IndexLoss loss =
      ops::index_loss(ctx, attention,
                      {.scale = options_.indexer_scale,
                       .recall_topk = options_.measure_recall ? config_.index_topk : 0});
  seen.index_loss.sum += loss.sum;
  seen.index_loss.n_rows += loss.n_rows;
  seen.index_loss.recall_sum += loss.recall_sum;
  seen.index_loss.best_recall_sum += loss.best_recall_sum;
  seen.index_loss.n_recall_rows += loss.n_recall_rows;
}

ClampCounts* StepWatch::clamp_counts(std::int64_t layer) {
  return &layers_[static_cast<std::size_t>(layer)].clamps;
}

ExpertChoices StepWatch::take_choices() {
  return std::exchange(choices_, {});
}

}  // namespace hadal::train
