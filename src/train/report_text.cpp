// The report of a terminal.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/units.h"
#include "train/report.h"
#include "train/series.h"

namespace hadal::train {

namespace {

constexpr std::size_t kLabelWidth = 17, kMaxSparkWidth = 100, kNewestEvents = 8;

struct Curve {
  const char* name;   // of the series
  const char* label;  // of the row
  const char* format;
};
constexpr Curve kCurves[] = {
    {"smoothed_loss", "loss", "{:.4f}"},
    {"mtp_loss", "MTP loss", "{:.4f}"},
    {"lr", "learning rate", "{:.2e}"},
    {"grad_norm", "gradient norm", "{:.3g}"},
    {"expert_load_max", "expert load", "{:.2f}"},
    {"dead_experts", "dead experts", "{:.0f}"},
    {"index_loss", "indexer loss", "{:.3g}"},
    {"index_recall_of_best", "indexer recall", "{:.3f}"},
    {"tokens_per_second", "tokens/s", "{:.4g}"},
};

double edge(const std::vector<double>& values, bool last) {
  const auto finite = [](double v) { return std::isfinite(v); };
  if (last) {
    const auto found = std::find_if(values.rbegin(), values.rend(), finite);
    return found == values.rend() ? std::nan("") : *found;
  }
  const auto found = std::find_if(values.begin(), values.end(), finite);
  return found == values.end() ? std::nan("") : *found;
}

std::string spark_row(const std::string& label, const std::vector<double>& values,
                      const char* format, std::size_t columns) {
  const std::string first = fmt::format(fmt::runtime(format), edge(values, false));
  const std::string last = fmt::format(fmt::runtime(format), edge(values, true));
  const std::size_t used = 2 + kLabelWidth + 10 + 1 + 1 + last.size() + 2;
  const std::size_t width =
      std::clamp<std::size_t>(columns > used ? columns - used : 10, 10, kMaxSparkWidth);
  return fmt::format("  {:<{}}{:>10} {} {}\n", label, kLabelWidth, first, sparkline(values, width),
                     last);
}

// In one line, cut to `width` characters; controls become spaces.
std::string one_line(std::string_view text, std::size_t width) {
  std::string out;
  std::size_t n = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0U) != 0x80U && ++n > width) return out + "…";
    out += byte < 0x20 || byte == 0x7F ? ' ' : c;
  }
  return out;
}

void add_run(std::string& out, const RunHistory& run, std::size_t columns) {
  out += fmt::format("{}: {} steps, {} tokens\n\n", run.name, run.steps.back().step,
                     format_count(static_cast<double>(run.steps.back().tokens)));
  for (const SummaryRow& row : summarize(run)) {
    if (row.value.empty()) continue;
    out += fmt::format("  {:<{}}{:>14}  {}{}\n", row.label, kLabelWidth, row.value,
                       row.warns ? "! " : "", row.note);
  }
  out += "\n";
  // A terminal shows less than a page: a few points a character.
  const std::vector<Series> all = curves(run);
  for (const Curve& curve : kCurves) {
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const Series& s) { return s.name == curve.name; });
    if (found != all.end()) out += spark_row(curve.label, found->values, curve.format, columns);
  }
  std::vector<double> validation;
  for (const EvalRecord& e : run.evals) validation.push_back(e.loss);
  if (std::isfinite(edge(validation, true))) {
    out += spark_row("validation loss", validation, "{:.4f}", columns);
  }
  if (!run.events.empty()) {
    const std::size_t n = std::min(kNewestEvents, run.events.size());
    out += n < run.events.size()
               ? fmt::format("\n  the last {} of {} events\n", n, run.events.size())
               : "\n  events\n";
    for (std::size_t i = run.events.size() - n; i < run.events.size(); ++i) {
      const EventRecord& e = run.events[i];
      out += fmt::format("  {:>8}  {:<11} {}\n", e.step, e.what,
                         one_line(e.sentence, std::max<std::size_t>(20, columns - 25)));
    }
  }
  if (!run.samples.empty()) {
    const SampleRecord& s = run.samples.back();
    out += fmt::format("\n  sample at step {}\n  {}\n", s.step,
                       one_line(s.prompt + s.text, columns - 4));
  }
  for (const std::string& warning : run.warnings) out += fmt::format("\n  warning: {}\n", warning);
}

}  // namespace

std::string sparkline(std::span<const double> values, std::size_t width) {
  constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const std::size_t n = std::min(width, values.size());
  std::vector<double> means;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t begin = values.size() * i / n, end = values.size() * (i + 1) / n;
    const double mean = layers_mean({values.begin() + static_cast<std::ptrdiff_t>(begin),
                                     values.begin() + static_cast<std::ptrdiff_t>(end)});
    means.push_back(mean);
    if (std::isfinite(mean)) low = std::min(low, mean), high = std::max(high, mean);
  }
  std::string out;
  for (const double mean : means) {
    if (!std::isfinite(mean)) {
      out += ' ';
      continue;
    }
    const double part = high > low ? (mean - low) / (high - low) : 0.0;
    out += kBlocks[static_cast<std::size_t>(std::min(7.0, part * 8.0))];
  }
  return out;
}

std::string text_report(std::span<const RunHistory> runs, std::size_t columns) {
  const std::size_t width = std::max<std::size_t>(40, columns);
  std::string out;
  for (const RunHistory& run : runs) {
    if (!out.empty()) out += "\n";
    add_run(out, run, width);
  }
  if (runs.size() > 1) {
    out += "\ntokens to equal loss\n";
    for (const auto& [a, b] : {std::pair(0, 1), std::pair(1, 0)}) {
      if (const auto equal = tokens_to_equal_loss(runs[b], runs[a])) {
        out += fmt::format("  {}\n", to_string(*equal));
      }
    }
  }
  return out;
}

}  // namespace hadal::train
