// Where a trainer says what happens: the metrics and, unless switched off, TensorBoard's files.
#pragma once

#include <optional>

#include "train/event_file.h"
#include "train/metrics_log.h"

namespace hadal::train {

struct RunLogOptions {
  std::optional<std::int64_t> resume_step{};  // of the checkpoint it goes on from; else it begins
  bool tensorboard = true;                    // RUN/tensorboard/
  double time = 0;                            // now, seconds since 1970
};

// One thread at a time. `fs` must outlive this.
class RunLog {
 public:
  // Throws as MetricsLog.
  RunLog(FileSystem& fs, const Path& run, const RunLogOptions& options);

  void write(const RunRecord& record);
  void sync();  // before a checkpoint counts as saved, and at the end
  [[nodiscard]] const MetricsLog::Dropped& dropped() const { return metrics_.dropped(); }

 private:
  MetricsLog metrics_;
  std::optional<EventFile> events_;
  std::int64_t last_step_ = 0;
};

}  // namespace hadal::train
