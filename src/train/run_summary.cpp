// A run in a few rows, and two runs in a sentence.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/units.h"
#include "train/run_history.h"

namespace hadal::train {

namespace {

// Of a healthy run.  Source: training.md §7.6.
constexpr double kHealthyLoad = 1.5, kHealthyRecall = 0.9;

template <class Get>
std::vector<double> column(const RunHistory& run, Get get) {
  std::vector<double> out;
  out.reserve(run.steps.size());
  for (const StepRecord& s : run.steps) out.push_back(get(s));
  return out;
}

double value_or_nan(const std::optional<double>& v) {
  return v.value_or(std::nan(""));
}

double sum(const std::vector<std::int64_t>& values) {
  double total = 0;
  for (const std::int64_t v : values) total += static_cast<double>(v);
  return total;
}

// The newest tenth of a column, where a run has settled.
double settled(const std::vector<double>& values) {
  const std::size_t n = std::max<std::size_t>(1, values.size() / 10);
  return median(
      {values.end() - static_cast<std::ptrdiff_t>(std::min(n, values.size())), values.end()});
}

std::string percent(double share) {
  return fmt::format("{:.3g} %", 100 * share);
}

class Rows {
 public:
  void add(std::string label, std::string value, std::string note = {}, bool warns = false) {
    rows_.push_back({std::move(label), std::move(value), std::move(note), warns});
  }
  // Only where the value is known.
  void add_if(std::string label, double v, const std::string& value, std::string note = {},
              bool warns = false) {
    const bool known = std::isfinite(v);
    add(std::move(label), known ? value : "", known ? std::move(note) : "", known && warns);
  }
  [[nodiscard]] std::vector<SummaryRow> take() { return std::move(rows_); }

 private:
  std::vector<SummaryRow> rows_;
};

void add_losses(const RunHistory& run, Rows& rows) {
  const double half_life = smoothing_half_life(run.steps.size());
  const std::vector<double> smooth = smoothed_loss(run.steps, half_life);
  rows.add_if("Training loss", smooth.back(), fmt::format("{:.4f}", smooth.back()),
              fmt::format("nats a token, smoothed (half-life {:.0f} steps)", half_life));
  double last = std::nan(""), best = std::nan("");
  std::int64_t best_step = 0;
  for (const EvalRecord& e : run.evals) {
    if (!std::isfinite(e.loss)) continue;
    last = e.loss;
    if (!(best <= e.loss)) best = e.loss, best_step = e.step;
  }
  rows.add_if("Validation loss", last, fmt::format("{:.4f}", last),
              best < last ? fmt::format("best {:.4f} at step {}", best, best_step)
                          : fmt::format("perplexity {:.4g}", std::exp(last)));
  const double mtp = settled(column(run, [](const auto& s) { return value_or_nan(s.mtp_loss); }));
  rows.add_if("MTP loss", mtp, fmt::format("{:.4f}", mtp), "median of the last tenth");
}

void add_optimizer(const RunHistory& run, Rows& rows) {
  const auto norm = column(run, [](const auto& s) { return s.grad_norm; });
  const auto n_clipped = static_cast<double>(
      std::count_if(run.steps.begin(), run.steps.end(), [](const auto& s) { return s.clipped; }));
  const double n = static_cast<double>(run.steps.size());
  rows.add_if("Gradient norm", median(norm), fmt::format("{:.3g}", median(norm)),
              fmt::format("median; {} of steps clipped", percent(n_clipped / n)));
  const auto n_non_finite = std::count_if(run.steps.begin(), run.steps.end(), [](const auto& s) {
    // The warm-up of the indexer takes no loss.
    const bool has_loss = std::isfinite(s.loss) || s.phase == "indexer_warmup";
    return !has_loss || !std::isfinite(s.grad_norm);
  });
  rows.add("Rollbacks", fmt::format("{}", run.abandoned.size()),
           n_non_finite > 0 ? fmt::format("{} steps without a finite loss", n_non_finite) : "",
           n_non_finite > 0);
}

void add_health(const RunHistory& run, Rows& rows) {
  const double load = settled(column(run, [](const auto& s) { return layers_max(s.expert_load); }));
  rows.add_if("Busiest expert", load, fmt::format("{:.2f}× mean", load),
              "worst layer, median of the last tenth", load >= kHealthyLoad);
  const auto dead = column(run, [](const auto& s) {
    return s.dead_experts.empty() ? std::nan("") : sum(s.dead_experts);
  });
  rows.add_if("Dead experts", settled(dead), fmt::format("{:.0f}", settled(dead)),
              "of all layers, median of the last tenth", settled(dead) > 0);
  double recall = std::nan("");
  for (const StepRecord& s : run.steps) {
    if (s.index_recall_of_best && std::isfinite(*s.index_recall_of_best)) {
      recall = *s.index_recall_of_best;
    }
  }
  rows.add_if("Indexer recall", recall, percent(recall),
              "of the attention mass that as many entries could catch, newest",
              recall < kHealthyRecall);
}

void add_cost(const RunHistory& run, Rows& rows) {
  const auto speed = column(run, [](const auto& s) { return s.tokens_per_second; });
  rows.add_if("Speed", median(speed), fmt::format("{} tokens/s", format_count(median(speed))),
              "median");
  const double mfu = median(column(run, [](const auto& s) { return value_or_nan(s.mfu); }));
  rows.add_if("MFU", mfu, percent(mfu), "executed over peak FLOP/s, median");
  std::int64_t memory = 0;
  for (const StepRecord& s : run.steps) memory = std::max(memory, s.peak_memory_bytes);
  rows.add("Peak memory", memory > 0 ? format_bytes(static_cast<double>(memory)) : "");
  const double seconds = training_seconds(run).back();
  rows.add("Training time", seconds > 0 ? format_seconds(seconds) : "", "");
}

}  // namespace

std::vector<SummaryRow> summarize(const RunHistory& run) {
  const StepRecord& last = run.steps.back();
  Rows rows;
  add_losses(run, rows);
  rows.add("Tokens", format_count(static_cast<double>(last.tokens)),
           fmt::format("{} steps, {} a step now", last.step,
                       format_count(static_cast<double>(last.batch_tokens))));
  add_optimizer(run, rows);
  add_health(run, rows);
  add_cost(run, rows);
  return rows.take();
}

std::string to_string(const EqualLoss& equal) {
  const char* curve = equal.curve == LossCurve::validation ? "validation" : "smoothed training";
  const std::string goal =
      fmt::format("{} ended with a {} loss of {:.4f} after {} tokens", equal.reference, curve,
                  equal.loss, format_count(equal.reference_tokens));
  if (!equal.other_tokens) {
    return fmt::format("{}; {} never got there (best {:.4f}).", goal, equal.other,
                       equal.other_best);
  }
  const std::optional<double> ratio = equal.ratio();
  return fmt::format("{}; {} was there after {}{}{}.", goal, equal.other,
                     equal.at_most ? "at most " : "", format_count(*equal.other_tokens),
                     ratio ? fmt::format(", {:.0f} % of the tokens", 100 * *ratio) : "");
}

}  // namespace hadal::train
