#include "train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/series.h"

namespace hadal::train {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMapColumns = 160, kMaxMarks = 1000, kMaxEvents = 400, kMaxSamples = 200;
constexpr std::size_t kAbandonedPoints = 400;

// Six digits are more than a picture shows.
Json rounded(double v) {
  if (!std::isfinite(v)) return {};
  return std::strtod(fmt::format("{:.6g}", v).c_str(), nullptr);
}

Json rounded(const std::vector<double>& values) {
  Json list = Json::array();
  for (const double v : values) list.push_back(rounded(v));
  return list;
}

Json points(const Series& series) {
  return Json::array({series.steps, rounded(series.values)});
}

// Steps, tokens and seconds at the same places, to turn one into another.
Json axis(const RunHistory& run) {
  const std::vector<double> seconds = training_seconds(run);
  const std::size_t n = run.steps.size(), m = std::min(n, kMaxSeriesPoints);
  Json steps = Json::array(), tokens = Json::array(), times = Json::array();
  for (std::size_t i = 0; i < m; ++i) {
    const std::size_t row = m > 1 ? i * (n - 1) / (m - 1) : 0;
    steps.push_back(run.steps[row].step);
    tokens.push_back(run.steps[row].tokens);
    times.push_back(rounded(seconds[row]));
  }
  return {{"steps", steps}, {"tokens", tokens}, {"seconds", times}};
}

// At most `most` of them, evenly.
std::vector<std::int64_t> some(const std::vector<std::int64_t>& all, std::size_t most) {
  if (all.size() <= most) return all;
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < most; ++i) out.push_back(all[i * all.size() / most]);
  return out;
}

Json json_of(const EvalRecord& e) {
  return {{"step", e.step}, {"split", e.split}, {"loss", rounded(e.loss)}};
}

// The newest, where there are too many: checkpoints first.
Json events_json(const RunHistory& run) {
  std::vector<const EventRecord*> kept;
  for (const EventRecord& e : run.events) kept.push_back(&e);
  if (kept.size() > kMaxEvents) {
    std::erase_if(kept, [](const EventRecord* e) { return e->what == event::kCheckpoint; });
  }
  const std::size_t skip = kept.size() > kMaxEvents ? kept.size() - kMaxEvents : 0;
  Json out = Json::array();
  for (std::size_t i = skip; i < kept.size(); ++i) {
    const EventRecord& e = *kept[i];
    out.push_back({{"step", e.step}, {"what", e.what}, {"sentence", e.sentence}});
  }
  return out;
}

Json samples_json(const RunHistory& run) {
  const std::size_t n = run.samples.size();
  Json out = Json::array();
  for (std::size_t i = n > kMaxSamples ? n - kMaxSamples : 0; i < n; ++i) {
    const SampleRecord& s = run.samples[i];
    out.push_back({{"step", s.step}, {"tokens", s.tokens}, {"prompt", s.prompt}, {"text", s.text}});
  }
  return out;
}

Json run_json(const RunHistory& run) {
  Json out;
  out["name"] = run.name;
  out["last_step"] = run.steps.back().step;
  out["half_life"] = smoothing_half_life(run.steps.size());
  out["summary"] = Json::array();
  for (const SummaryRow& row : summarize(run)) {
    out["summary"].push_back(
        {{"label", row.label}, {"value", row.value}, {"note", row.note}, {"warns", row.warns}});
  }
  out["axis"] = axis(run);
  out["series"] = Json::object();
  for (const Series& series : curves(run)) out["series"][series.name] = points(series);
  out["evals"] = Json::array();
  for (const EvalRecord& e : run.evals) out["evals"].push_back(json_of(e));
  out["abandoned"] = Json::array();
  for (const std::vector<StepRecord>& part : run.abandoned) {
    Series series{.name = "loss", .steps = {}, .values = {}};
    for (const StepRecord& s : part) {
      series.steps.push_back(s.step);
      series.values.push_back(s.loss);
    }
    out["abandoned"].push_back(points(thin_out(series, kAbandonedPoints)));
  }
  std::vector<std::int64_t> clipped;
  for (const StepRecord& s : run.steps) {
    if (s.clipped) clipped.push_back(s.step);
  }
  out["clipped"] = some(clipped, kMaxMarks);
  out["bands"] = Json::array();
  for (const Band& b : bands(run)) {
    out["bands"].push_back(
        {{"name", b.name}, {"kind", b.kind}, {"begin", b.begin}, {"end", b.end}});
  }
  const LoadMap map = load_map(run, kMapColumns);
  out["load_map"] = {{"layers", map.layers}, {"begin", map.begin}, {"end", map.end}};
  out["load_map"]["loads"] = Json::array();
  for (const auto& row : map.loads) out["load_map"]["loads"].push_back(rounded(row));
  out["events"] = events_json(run);
  out["samples"] = samples_json(run);
  out["config"] = Json::array();
  for (const auto& [key, value] : run.config) out["config"].push_back({key, value});
  out["config_text"] = run.config_text;
  out["warnings"] = run.warnings;
  return out;
}

Json comparison_json(const EqualLoss& equal) {
  const std::optional<double> ratio = equal.ratio();
  return {{"reference", equal.reference},
          {"other", equal.other},
          {"curve", equal.curve == LossCurve::validation ? "validation" : "training, smoothed"},
          {"loss", rounded(equal.loss)},
          {"reference_tokens", rounded(equal.reference_tokens)},
          {"other_tokens", equal.other_tokens ? rounded(*equal.other_tokens) : Json()},
          {"at_most", equal.at_most},
          {"other_best", rounded(equal.other_best)},
          {"ratio", ratio ? rounded(*ratio) : Json()},
          {"sentence", to_string(equal)}};
}

}  // namespace

std::string report_json(std::span<const RunHistory> runs) {
  Json out;
  out["runs"] = Json::array();
  for (const RunHistory& run : runs) out["runs"].push_back(run_json(run));
  out["comparison"] = Json::array();
  if (runs.size() > 1) {
    for (const auto& [a, b] : {std::pair(0, 1), std::pair(1, 0)}) {
      if (const auto equal = tokens_to_equal_loss(runs[b], runs[a])) {
        out["comparison"].push_back(comparison_json(*equal));
      }
    }
  }
  std::string text = out.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Within a script element only "</script" and "<!--" mean anything to the reader of HTML.
  std::string escaped;
  escaped.reserve(text.size());
  for (const char c : text) {
    if (c == '<') {
      escaped += "\\u003c";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string html_report(std::span<const RunHistory> runs) {
  const std::string_view page = report_page();
  const std::size_t at = page.find(kReportData);
  HADAL_CHECK(at != std::string_view::npos);
  std::string out(page.substr(0, at));
  out += report_json(runs);
  out += page.substr(at + kReportData.size());
  return out;
}

}  // namespace hadal::train
