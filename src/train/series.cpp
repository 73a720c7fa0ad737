#include "train/series.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <utility>

namespace hadal::train {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

using Getter = std::function<double(const StepRecord&)>;
using Layers = std::vector<double> StepRecord::*;
using Optional = std::optional<double> StepRecord::*;

Getter optional(Optional field) {
  return [field](const StepRecord& s) { return (s.*field).value_or(kNone); };
}
Getter highest(Layers field) {
  return [field](const StepRecord& s) { return layers_max(s.*field); };
}
Getter average(Layers field) {
  return [field](const StepRecord& s) { return layers_mean(s.*field); };
}
// Of what a run may measure or not, 0 means not.
Getter positive(std::function<double(const StepRecord&)> get) {
  return [get = std::move(get)](const StepRecord& s) {
    const double v = get(s);
    return v > 0 ? v : kNone;
  };
}
Getter over_lr(Optional field) {
  return
      [field](const StepRecord& s) { return s.lr > 0 ? (s.*field).value_or(kNone) / s.lr : kNone; };
}

// Updates are measured over the learning rate: Muon's stay at gamma then.
std::vector<std::pair<std::string, Getter>> getters() {
  using S = StepRecord;
  return {
      {"loss", [](const S& s) { return s.loss; }},
      {"mtp_loss", optional(&S::mtp_loss)},
      {"balance_loss", optional(&S::balance_loss)},
      {"index_loss", optional(&S::index_loss)},
      {"index_recall", optional(&S::index_recall)},
      {"index_recall_of_best", optional(&S::index_recall_of_best)},
      {"lr", [](const S& s) { return s.lr; }},
      {"grad_norm", [](const S& s) { return s.grad_norm; }},
      {"clipped_grad_norm", positive([](const S& s) { return s.clipped_grad_norm; })},
      {"muon_update", over_lr(&S::muon_update_rms)},
      {"adamw_update", over_lr(&S::adamw_update_rms)},
      {"expert_load_max", highest(&S::expert_load)},
      {"expert_load_mean", average(&S::expert_load)},
      {"dead_experts",
       [](const S& s) {
         double n = s.dead_experts.empty() ? kNone : 0;
         for (const std::int64_t layer : s.dead_experts) n += static_cast<double>(layer);
         return n;
       }},
      {"bias_spread_max", highest(&S::bias_spread)},
      {"bias_spread_mean", average(&S::bias_spread)},
      {"gate_clamped", average(&S::gate_clamped)},
      {"up_clamped_high", average(&S::up_clamped_high)},
      {"up_clamped_low", average(&S::up_clamped_low)},
      {"sink_mass_max", highest(&S::sink_mass)},
      {"sink_mass_mean", average(&S::sink_mass)},
      {"scale_lifts",
       [](const S& s) { return s.scale_lifts ? static_cast<double>(*s.scale_lifts) : kNone; }},
      {"amax_gain", optional(&S::amax_gain)},
      {"batch_tokens", positive([](const S& s) { return static_cast<double>(s.batch_tokens); })},
      {"tokens_per_second", positive([](const S& s) { return s.tokens_per_second; })},
      {"mfu", optional(&S::mfu)},
      {"step_seconds", positive([](const S& s) { return s.seconds.step; })},
      {"data_seconds", positive([](const S& s) { return s.seconds.data; })},
      {"forward_seconds", positive([](const S& s) { return s.seconds.forward; })},
      {"backward_seconds", positive([](const S& s) { return s.seconds.backward; })},
      {"optimizer_seconds", positive([](const S& s) { return s.seconds.optimizer; })},
      {"newton_schulz_seconds", positive([](const S& s) { return s.seconds.newton_schulz; })},
      {"peak_memory_bytes",
       positive([](const S& s) { return static_cast<double>(s.peak_memory_bytes); })},
  };
}

// Where [0, n) is cut into at most `parts` stretches of about one size.
std::size_t cut(std::size_t n, std::size_t parts, std::size_t i) {
  return n * i / parts;
}

}  // namespace

Series thin_out(const Series& series, std::size_t max_points) {
  const std::size_t n = series.values.size();
  if (n <= max_points || max_points < 4) return series;
  Series out{.name = series.name, .steps = {}, .values = {}};
  const auto keep = [&](std::size_t i) {
    out.steps.push_back(series.steps[i]);
    out.values.push_back(series.values[i]);
  };
  const std::size_t parts = max_points / 2 - 1;
  keep(0);
  for (std::size_t part = 0; part < parts; ++part) {
    const std::size_t begin = 1 + cut(n - 2, parts, part), end = 1 + cut(n - 2, parts, part + 1);
    if (begin == end) continue;
    std::optional<std::size_t> low, high;
    for (std::size_t i = begin; i < end; ++i) {
      if (!std::isfinite(series.values[i])) continue;
      if (!low || series.values[i] < series.values[*low]) low = i;
      if (!high || series.values[i] > series.values[*high]) high = i;
    }
    if (!low) {
      keep(begin);
      continue;
    }
    keep(std::min(*low, *high));
    if (*low != *high) keep(std::max(*low, *high));
  }
  keep(n - 1);
  return out;
}

std::vector<Series> curves(const RunHistory& run, std::size_t max_points) {
  std::vector<std::int64_t> steps;
  for (const StepRecord& s : run.steps) steps.push_back(s.step);
  std::vector<Series> out;
  const auto add = [&](const std::string& name, std::vector<double> values) {
    if (std::none_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); })) {
      return;
    }
    out.push_back(thin_out({name, steps, std::move(values)}, max_points));
  };
  const auto add_column = [&](const std::string& name, const Getter& get) {
    std::vector<double> values;
    values.reserve(steps.size());
    for (const StepRecord& s : run.steps) values.push_back(get(s));
    add(name, std::move(values));
  };
  for (const auto& [name, get] : getters()) add_column(name, get);
  add("smoothed_loss", smoothed_loss(run.steps, smoothing_half_life(run.steps.size())));
  std::set<std::string> names;
  for (const StepRecord& s : run.steps) {
    for (const auto& [name, v] : s.values) names.insert(name);
  }
  for (const std::string& name : names) {
    add_column("values/" + name, [&](const StepRecord& s) {
      const auto found = s.values.find(name);
      return found == s.values.end() ? kNone : found->second;
    });
  }
  return out;
}

LoadMap load_map(const RunHistory& run, std::size_t max_columns) {
  LoadMap map;
  std::size_t n_layers = 0;
  for (const StepRecord& s : run.steps) n_layers = std::max(n_layers, s.expert_load.size());
  const std::size_t n = run.steps.size(), columns = std::min(n, max_columns);
  for (std::size_t c = 0; c < columns; ++c) {
    map.begin.push_back(run.steps[cut(n, columns, c)].step);
    map.end.push_back(run.steps[cut(n, columns, c + 1) - 1].step);
  }
  for (std::size_t layer = 0; layer < n_layers; ++layer) {
    std::vector<double> row;
    bool measured = false;
    for (std::size_t c = 0; c < columns; ++c) {
      double most = kNone;
      for (std::size_t i = cut(n, columns, c); i < cut(n, columns, c + 1); ++i) {
        const auto& loads = run.steps[i].expert_load;
        if (layer < loads.size()) most = std::fmax(most, loads[layer]);
      }
      measured = measured || std::isfinite(most);
      row.push_back(most);
    }
    if (!measured) continue;
    map.layers.push_back(static_cast<std::int64_t>(layer));
    map.loads.push_back(std::move(row));
  }
  return map;
}

std::vector<Band> bands(const RunHistory& run) {
  std::vector<Band> out;
  // Name of a step's band of that kind; "": none.
  const auto add = [&](const char* kind,
                       const std::function<std::string(const StepRecord&)>& name) {
    std::optional<Band> open;
    std::int64_t before = 0;
    for (const StepRecord& s : run.steps) {
      const std::string now = name(s);
      if (open && open->name != now) {
        open->end = before;
        out.push_back(*open);
        open.reset();
      }
      // A band begins where the step before it ended.
      if (!open && !now.empty()) open = Band{.name = now, .kind = kind, .begin = before, .end = 0};
      before = s.step;
    }
    if (open) {
      open->end = before;
      out.push_back(*open);
    }
  };
  add("phase", [](const StepRecord& s) {
    if (s.phase.empty()) return std::string();
    std::string words = s.phase;
    std::replace(words.begin(), words.end(), '_', ' ');
    return s.sequence_length > 0 ? fmt::format("{} · {} tokens", words, s.sequence_length) : words;
  });
  add("anticipatory", [](const StepRecord& s) {
    return s.anticipatory.empty() || s.anticipatory == "off" ? std::string()
                                                             : "anticipatory routing";
  });
  add("qat", [](const StepRecord& s) {
    return s.qat.empty() || s.qat == "off" ? std::string() : s.qat + " training";
  });
  return out;
}

}  // namespace hadal::train
