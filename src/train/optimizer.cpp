#include "train/optimizer.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "kernels/sum_squares.h"

namespace hadal::train {

namespace {

void require(bool ok, const char* key, double found, const char* wanted) {
  if (ok) return;
  throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}; wanted {}", key, found, wanted));
}

void check(const OptimizerOptions& o) {
  const auto is_rate = [](double x) { return x >= 0.0 && x < 1.0; };
  const auto is_amount = [](double x) { return x >= 0.0 && std::isfinite(x); };
  require(is_rate(o.muon.momentum), "muon.momentum", o.muon.momentum, "0 or more, below 1");
  require(is_amount(o.muon.weight_decay), "muon.weight_decay", o.muon.weight_decay, "0 or more");
  require(is_amount(o.muon.gamma), "muon.gamma", o.muon.gamma, "0 or more, 0.18 as published");
  require(is_amount(o.muon.lr_scale), "muon.lr_scale", o.muon.lr_scale, "0 or more");
  require(!o.muon.schedule.empty(), "muon.ns_schedule", 0, "at least one step (a, b, c)");
  require(is_rate(o.adamw.beta1), "adamw.beta1", o.adamw.beta1, "0 or more, below 1");
  require(is_rate(o.adamw.beta2), "adamw.beta2", o.adamw.beta2, "0 or more, below 1");
  // Below the smallest normal f32 it would be flushed or lose digits.
  require(o.adamw.eps >= 1.2e-38 && o.adamw.eps < 1.0, "adamw.eps", o.adamw.eps,
          "1.2e-38 to 1, 1e-20 as published");
  require(is_amount(o.adamw.weight_decay), "adamw.weight_decay", o.adamw.weight_decay, "0 or more");
  require(is_amount(o.adamw.lr_scale), "adamw.lr_scale", o.adamw.lr_scale, "0 or more");
  require(is_amount(o.clip_norm), "clip_norm", o.clip_norm, "0 (off) or more");
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

NonFiniteGradient find_non_finite(const ParameterStore& store, const Parameter& p) {
  const Tensor gradient = NamedTensor{p.info.name, p.gradient, store.gpu()}.on_host();
  const float* g = gradient.data<const float>();
  std::int64_t i = 0;
  while (i + 1 < gradient.numel() && std::isfinite(g[i])) ++i;
  return {p.info.name, i, g[i]};
}

}  // namespace

double GradientReport::norm() const {
  std::vector<double> level = sums;
  while (level.size() > 1) {
    std::vector<double> next;
    for (std::size_t i = 0; i < level.size(); i += 2) {
      next.push_back(i + 1 < level.size() ? level[i] + level[i + 1] : level[i]);
    }
    level = std::move(next);
  }
  return level.empty() ? 0.0 : std::sqrt(level[0]);
}

Optimizer::Optimizer(const ParameterStore& store, OptimizerOptions options, Trained trained,
                     std::span<const std::uint8_t> owned)
    : store_(&store), options_(std::move(options)) {
  check(options_);
  std::vector<VariableId> on_adamw;
  for (const Parameter& p : store.parameters()) {
    if (p.info.group == ParameterGroup::frozen) continue;
    if (trained == Trained::indexer_only && !p.info.of_indexer) continue;
    learning_.push_back(p.info.id);
    if (trained == Trained::indexer_only || p.info.group == ParameterGroup::adamw) {
      on_adamw.push_back(p.info.id);
    }
  }
  if (trained == Trained::all && !store.matrices().empty()) {
    muon_.emplace(store, options_.muon, owned);
  }
  adamw_.emplace(store, options_.adamw, on_adamw);
}

GradientReport Optimizer::measure(const ExecContext& ctx) const {
  std::vector<TensorView> gradients;
  for (const VariableId id : learning_) gradients.push_back(store_->at(id).gradient);
  std::vector<double> sums(gradients.size());
  ctx.launch(kSumSquares, DType::f32, SumSquaresArgs{gradients, sums});
  GradientReport report;
  report.sums.resize(store_->parameters().size(), 0.0);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    report.sums[learning_[i] - 1] = sums[i];
    if (!report.non_finite && !std::isfinite(sums[i])) {
      report.non_finite = find_non_finite(*store_, store_->at(learning_[i]));
    }
  }
  return report;
}

StepStats Optimizer::step(const ExecContext& ctx, double lr, double gradient_norm) {
  const auto start = std::chrono::steady_clock::now();
  StepStats stats;
  if (options_.clip_norm > 0.0 && gradient_norm > options_.clip_norm) {
    stats.gradient_scale = options_.clip_norm / gradient_norm;
  }
  if (muon_) {
    const double before = muon_->newton_schulz_seconds();
    stats.muon = muon_->step(ctx, lr, stats.gradient_scale);
    stats.newton_schulz_seconds = muon_->newton_schulz_seconds() - before;
  }
  stats.adamw = adamw_->step(ctx, lr, stats.gradient_scale);
  stats.seconds = seconds_since(start);
  return stats;
}

std::size_t Optimizer::nbytes() const {
  return (muon_ ? muon_->nbytes() : 0) + adamw_->nbytes();
}

std::vector<NamedTensor> Optimizer::state() const {
  std::vector<NamedTensor> all = muon_ ? muon_->state() : std::vector<NamedTensor>{};
  for (NamedTensor& t : adamw_->state()) all.push_back(std::move(t));
  return all;
}

}  // namespace hadal::train
