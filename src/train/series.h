// What a report draws: named curves of a run, thinned out to what a screen can show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "train/run_history.h"

namespace hadal::train {

inline constexpr std::size_t kMaxSeriesPoints = 2000;

struct Series {
  std::string name;  // "loss", "expert_load_max"; the page knows titles and units
  std::vector<std::int64_t> steps;
  std::vector<double> values;  // NaN: the line breaks here
};

// At most `max_points` of a curve: the lowest and the highest of each of max_points / 2 stretches,
// so that no peak is lost, and the first and last value.
[[nodiscard]] Series thin_out(const Series& series, std::size_t max_points = kMaxSeriesPoints);

// Every curve that the run has, thinned out. Curves without a single finite value are left out.
[[nodiscard]] std::vector<Series> curves(const RunHistory& run,
                                         std::size_t max_points = kMaxSeriesPoints);

// Expert load by layer over time, at most `max_columns` stretches of steps, the highest of each.
struct LoadMap {
  std::vector<std::int64_t> layers;        // those with experts
  std::vector<std::int64_t> begin, end;    // steps of a column: [begin, end]
  std::vector<std::vector<double>> loads;  // [layer][column]
};
[[nodiscard]] LoadMap load_map(const RunHistory& run, std::size_t max_columns);

// What a run does for a while: attention phase, sequence length, anticipatory routing,
// quantisation.
struct Band {
  std::string name;                 // "sparse 4096", "anticipatory routing"
  std::string kind;                 // phase, anticipatory, qat
  std::int64_t begin = 0, end = 0;  // steps
};
[[nodiscard]] std::vector<Band> bands(const RunHistory& run);

}  // namespace hadal::train
