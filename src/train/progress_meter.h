// How a run is doing, in one line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "train/step_record.h"

namespace hadal::train {

// Fed with every step. Rates and the time left follow the last steps, so that a longer sequence
// length shows soon; a step that repeats older ones (a rollback) starts the smoothing anew.
class ProgressMeter {
 public:
  // `total_tokens`: of the whole run; 0: unknown, then no percentage and no time left.
  explicit ProgressMeter(std::int64_t total_tokens) : total_tokens_(total_tokens) {}

  void add(const StepRecord& record);

  // "step 1200 · 12.5M of 100M tokens (12.5 %) · loss 3.214 · lr 2.7e-04 · 10.2k tokens/s ·
  // 2h05m left · 1.50 GiB", as many of the parts as fit into `columns` characters; they are left
  // out from the least important on. Empty before the first step.
  [[nodiscard]] std::string line(std::size_t columns) const;

  [[nodiscard]] double tokens_per_second() const;  // 0 when unknown
  [[nodiscard]] std::optional<double> seconds_left() const;
  [[nodiscard]] double loss() const { return loss_; }  // smoothed; NaN before there is one

 private:
  std::int64_t total_tokens_;
  std::optional<StepRecord> last_;
  double loss_ = 0, loss_weight_ = 0;
  double tokens_ = 0, seconds_ = 0;  // of the last steps, older ones fading
};

}  // namespace hadal::train
