#pragma once

#include <chrono>
#include <string>

#include "train/progress_meter.h"

namespace hadal::cli {

// The line of a run on stderr: rewritten in place on a terminal, elsewhere (a log file) a line of
// its own every `seconds_between`.
class TrainProgress {
 public:
  explicit TrainProgress(std::int64_t total_tokens, double seconds_between = 30.0);
  ~TrainProgress();  // leaves the last line
  TrainProgress(const TrainProgress&) = delete;
  TrainProgress& operator=(const TrainProgress&) = delete;

  void add(const train::StepRecord& record);
  // A sentence of its own, above the line.
  void say(const std::string& sentence);
  void finish();  // the last state, as a line that stays

 private:
  using Clock = std::chrono::steady_clock;
  void wipe();
  void show();

  train::ProgressMeter meter_;
  double seconds_between_;
  bool is_terminal_;
  bool shown_ = false;    // there is a line without its end
  bool pending_ = false;  // a step that was not shown yet
  Clock::time_point last_{};
};

}  // namespace hadal::cli
