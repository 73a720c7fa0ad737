#include "train/step_watch.h"

#include <cstring>

#include "ops/elementwise.h"

namespace hadal::train {

namespace {

constexpr std::int64_t kClampNumbers = sizeof(ClampCounts) / sizeof(std::int64_t);

double sum(const Tensor& x) {
  double total = 0;
  for (std::int64_t i = 0; i < x.numel(); ++i) total += x.data<const float>()[i];
  return total;
}

}  // namespace

StepWatch::StepWatch(const model::Config& config, WatchOptions options, const ExecContext& ctx)
    : config_(config), options_(options), ctx_(ctx.without_tape()) {
  layers_.resize(config.layers.size());
  for (Layer& layer : layers_) layer.load.resize(static_cast<std::size_t>(config.n_routed_experts));
  load_ = ctx_.empty({std::ssize(layers_), config.n_routed_experts}, DType::i64);
  clamps_ = ctx_.empty({std::ssize(layers_), kClampNumbers}, DType::i64);
  for (const Tensor* counts : {&load_, &clamps_}) ctx_.stream().zero(*counts);
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
  ops::add_expert_load(ctx, routing,
                       load_.slice(layer, layer + 1).reshape({config_.n_routed_experts}));
  if (config_.layer(layer).hash_routed) return;  // nothing to balance: ids decide
  if (options_.record_choices) {
    choices_[static_cast<std::size_t>(layer)] = routing.experts.detached();
  }
  if (options_.balance_scale > 0) {
    pending_.push_back({static_cast<std::size_t>(layer),
                        ops::balance_loss(ctx, logits, routing, bounds_, options_.balance_scale),
                        {}});
  }
}

bool StepWatch::wants_index_scores(std::int64_t) {
  return options_.indexer_scale > 0;
}

void StepWatch::indexed(ExecContext& ctx, std::int64_t layer,
                        const ops::IndexedAttention& attention) {
  pending_.push_back(
      {static_cast<std::size_t>(layer),
       {},
       ops::index_loss_rows(ctx, attention,
                            {.scale = options_.indexer_scale,
                             .recall_topk = options_.measure_recall ? config_.index_topk : 0})});
}

ClampCounts* StepWatch::clamp_counts(std::int64_t layer) {
  return reinterpret_cast<ClampCounts*>(clamps_.bytes()) + layer;
}

void StepWatch::settle() {
  std::vector<Tensor> parts{load_, clamps_};
  for (const Pending& p : pending_) {
    const ops::IndexLossRows& rows = p.index_loss;
    parts.insert(parts.end(),
                 {p.balance_loss, rows.loss, rows.mass, rows.recall, rows.best_recall});
  }
  const std::vector<Tensor> host = ctx_.to_host(parts);
  const auto* load = host[0].data<const std::int64_t>();
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    for (std::int64_t& n : layers_[i].load) n = *load++;
    std::memcpy(&layers_[i].clamps, host[1].bytes() + i * sizeof(ClampCounts), sizeof(ClampCounts));
  }
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    const Tensor* const part = host.data() + 2 + 5 * i;
    Layer& seen = layers_[pending_[i].layer];
    if (part[0]) {
      seen.balance_loss += sum(part[0]);
      seen.n_sequences += part[0].numel();
    }
    if (!part[1]) continue;
    const ops::IndexLoss loss = ops::sum_rows({part[1], part[2], part[3], part[4]});
    seen.index_loss.sum += loss.sum;
    seen.index_loss.n_rows += loss.n_rows;
    seen.index_loss.recall_sum += loss.recall_sum;
    seen.index_loss.best_recall_sum += loss.best_recall_sum;
    seen.index_loss.n_recall_rows += loss.n_recall_rows;
  }
  pending_.clear();
}

ExpertChoices StepWatch::take_choices() {
  return std::exchange(choices_, {});
}

}  // namespace hadal::train
