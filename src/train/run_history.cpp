#include "train/run_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "train/metrics_log.h"

namespace hadal::train {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::string read_file(FileSystem& fs, const Path& path) {
  const std::vector<std::byte> bytes = fs.read_all(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Puts records in their place. A step that was there already means a rollback: what was trained
// from it on is given up, with all that was measured on it.
class Collector {
 public:
  explicit Collector(RunHistory& run) : run_(run) {}

  void operator()(StepRecord&& r) {
    auto& steps = run_.steps;
    if (!steps.empty() && r.step <= steps.back().step) {
      const auto from = std::find_if(steps.begin(), steps.end(),
                                     [&](const StepRecord& s) { return s.step >= r.step; });
      run_.abandoned.emplace_back(std::make_move_iterator(from),
                                  std::make_move_iterator(steps.end()));
      steps.erase(from, steps.end());
      std::erase_if(run_.evals, [&](const EvalRecord& e) { return e.step >= r.step; });
      std::erase_if(run_.samples, [&](const SampleRecord& s) { return s.step >= r.step; });
    }
    steps.push_back(std::move(r));
  }
  void operator()(EvalRecord&& r) { run_.evals.push_back(std::move(r)); }
  void operator()(SampleRecord&& r) { run_.samples.push_back(std::move(r)); }
  void operator()(EventRecord&& r) { run_.events.push_back(std::move(r)); }

 private:
  RunHistory& run_;
};

struct Point {
  double tokens, loss;
};

// Points of finite loss.
std::vector<Point> loss_curve(const RunHistory& run, LossCurve curve) {
  std::vector<Point> points;
  if (curve == LossCurve::validation) {
    for (const EvalRecord& e : run.evals) points.push_back({static_cast<double>(e.tokens), e.loss});
  } else {
    const auto loss = smoothed_loss(run.steps, smoothing_half_life(run.steps.size()));
    for (std::size_t i = 0; i < loss.size(); ++i) {
      points.push_back({static_cast<double>(run.steps[i].tokens), loss[i]});
    }
  }
  std::erase_if(points, [](const Point& p) { return !std::isfinite(p.loss); });
  return points;
}

}  // namespace

RunHistory load_run(FileSystem& fs, const Path& run) {
  RunHistory history;
  const bool is_file = run.extension() == ".jsonl";
  const Path metrics = is_file ? run : run / kMetricsName;
  history.directory = is_file ? run.parent_path() : run;
  if (!fs.exists(metrics)) {
    const bool exists = fs.exists(run);
    throw Error(ErrorCode::not_found,
                exists
                    ? fmt::format("{} is no training run: it has no {}", run.string(), kMetricsName)
                    : fmt::format("there is no run {}; a run is the directory that hadal train "
                                  "writes to",
                                  run.string()));
  }
  const Path absolute = std::filesystem::absolute(history.directory).lexically_normal();
  history.name = absolute.has_filename() ? absolute.filename().string()
                                         : absolute.parent_path().filename().string();

  const std::string text = read_file(fs, metrics);
  Collector collect(history);
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    ++number;
    std::size_t end = text.find('\n', begin);
    const bool whole = end != std::string::npos;
    if (!whole) end = text.size();
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    try {
      const std::string where = fmt::format("{} line {}", metrics.string(), number);
      if (auto record = parse_record(line, where)) std::visit(collect, std::move(*record));
    } catch (const Error& error) {
      // A run that is being written ends in half a line now and then.
      if (whole) history.warnings.emplace_back(error.what());
    }
  }
  if (history.steps.empty()) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{} has no step yet{}: there is nothing to report", metrics.string(),
                            history.warnings.empty() ? "" : ", only lines that cannot be read"));
  }
  for (const char* name : {"config.toml", "run.toml"}) {
    const Path config = history.directory / name;
    if (!fs.exists(config)) continue;
    history.config_text = read_file(fs, config);
    break;
  }
  return history;
}

std::vector<double> training_seconds(const RunHistory& run) {
  std::vector<double> out;
  double sum = 0;
  for (const StepRecord& s : run.steps) {
    sum += std::isfinite(s.seconds.step) ? s.seconds.step : 0;
    out.push_back(sum);
  }
  return out;
}

std::vector<double> smoothed_loss(const std::vector<StepRecord>& steps, double half_life) {
  const double keep = std::exp2(-1.0 / half_life);
  // Of the steps on one side of here: their weights w = keep^|u| at distance u, by powers of u, and
  // with their losses x.
  struct Sums {
    double w = 0, wu = 0, wuu = 0, wx = 0, wux = 0;
    void add_here(double x) {
      if (std::isfinite(x)) w += 1, wx += x;
    }
    void move(double k, double by) {  // here goes on, so every u changes by `by`
      wuu = k * (wuu + 2 * by * wu + w), wu = k * (wu + by * w), w = k * w;
      wux = k * (wux + by * wx), wx = k * wx;
    }
  };
  const std::size_t n = steps.size();
  std::vector<Sums> before(n);  // and here
  Sums sums;
  for (std::size_t i = 0; i < n; ++i) {
    sums.move(keep, -1);
    sums.add_here(steps[i].loss);
    before[i] = sums;
  }
  std::vector<double> out(n);
  Sums after;
  for (std::size_t i = n; i-- > 0;) {
    const Sums& b = before[i];
    const double w = b.w + after.w, wu = b.wu + after.wu, wuu = b.wuu + after.wuu;
    const double wx = b.wx + after.wx, wux = b.wux + after.wux;
    const double determinant = w * wuu - wu * wu;
    // Too few points for a line have a mean.
    const bool has_line = determinant > 1e-9 * w * w;
    out[i] = w <= 0 ? kNone : has_line ? (wuu * wx - wu * wux) / determinant : wx / w;
    after.add_here(steps[i].loss);
    after.move(keep, 1);
  }
  return out;
}

double smoothing_half_life(std::size_t n_steps) {
  const auto n = static_cast<double>(n_steps);
  // Some steps always, a hundredth of a long run, and of a short one little enough to see it.
  return std::max(1.0, std::min(std::max(5.0, std::round(n / 100)), std::round(n / 8)));
}

double layers_max(const std::vector<double>& layers) {
  double most = kNone;
  for (const double v : layers) most = std::fmax(most, v);
  return most;
}

double layers_mean(const std::vector<double>& layers) {
  double sum = 0;
  std::size_t n = 0;
  for (const double v : layers) {
    if (std::isfinite(v)) sum += v, ++n;
  }
  return n > 0 ? sum / static_cast<double>(n) : kNone;
}

double median(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  if (values.empty()) return kNone;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::optional<double> EqualLoss::ratio() const {
  if (!other_tokens || !(reference_tokens > 0)) return std::nullopt;
  return *other_tokens / reference_tokens;
}

std::optional<EqualLoss> tokens_to_equal_loss(const RunHistory& reference,
                                              const RunHistory& other) {
  for (const LossCurve curve : {LossCurve::validation, LossCurve::train}) {
    const std::vector<Point> goal = loss_curve(reference, curve), way = loss_curve(other, curve);
    if (goal.empty() || way.empty()) continue;
    EqualLoss equal{.reference = reference.name,
                    .other = other.name,
                    .curve = curve,
                    .loss = goal.back().loss,
                    .reference_tokens = goal.back().tokens,
                    .other_tokens = std::nullopt,
                    .other_best = way.front().loss};
    for (const Point& p : way) equal.other_best = std::min(equal.other_best, p.loss);
    for (std::size_t i = 0; i < way.size() && !equal.other_tokens; ++i) {
      if (way[i].loss > equal.loss) continue;
      if (i == 0) {
        equal.other_tokens = way[i].tokens;
        equal.at_most = true;
        continue;
      }
      const double part = (way[i - 1].loss - equal.loss) / (way[i - 1].loss - way[i].loss);
      equal.other_tokens = way[i - 1].tokens + part * (way[i].tokens - way[i - 1].tokens);
    }
    return equal;
  }
  return std::nullopt;
}

}  // namespace hadal::train
