// Notices that a run is leaving its path.  Source: training.md §2.10.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal::train {

struct SpikeOptions {
  std::int64_t window = 256;    // steps that are looked back on
  std::int64_t min_steps = 32;  // before that many, nothing is a spike
  double loss_z = 6.0;          // robust z-score of the log loss, two steps in a row
  double gradient_ratio = 8.0;  // gradient norm over its median
};

// Medians instead of means: a spike must not hide itself in the statistics.
class SpikeDetector {
 public:
  explicit SpikeDetector(SpikeOptions options) : options_(options) {}

  // Looks at a step, then remembers it. A sentence when it is a spike, else empty. The loss is
  // positive and finite.
  [[nodiscard]] std::string observe(double loss, double gradient_norm);

  // All that the next verdict depends on; oldest first.
  struct State {
    std::vector<double> log_losses, gradient_norms;
    bool was_high = false;  // the last loss already stuck out
    bool operator==(const State&) const = default;
  };
  [[nodiscard]] const State& state() const { return state_; }
  void restore(State state) { state_ = std::move(state); }

 private:
  SpikeOptions options_;
  State state_;
};

}  // namespace hadal::train
