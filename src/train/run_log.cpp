#include "train/run_log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cctype>

namespace hadal::train {

namespace {

// Letters, digits and dashes of the host's name, and the process.
std::string host_and_process() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  std::string name = host.data();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  return fmt::format("{}.{}", name.empty() ? "host" : name, ::getpid());
}

MetricsLog open_metrics(FileSystem& fs, const Path& run, const RunLogOptions& options) {
  fs.create_directories(run);
  const Path file = run / kMetricsName;
  return options.resume_step ? MetricsLog::resume(fs, file, *options.resume_step)
                             : MetricsLog::create(fs, file);
}

}  // namespace

RunLog::RunLog(FileSystem& fs, const Path& run, const RunLogOptions& options)
    : metrics_(open_metrics(fs, run, options)) {
  if (options.tensorboard) {
    events_.emplace(
        fs, run / "tensorboard",
        EventFile::Options{
            .time = options.time, .unique = host_and_process(), .after = options.resume_step});
  }
  last_step_ = options.resume_step.value_or(0);
}

void RunLog::write(const RunRecord& record) {
  metrics_.write(record);
  if (!events_) return;
  if (const auto* step = std::get_if<StepRecord>(&record)) {
    // Rolled back: TensorBoard would draw both ways on top of each other.
    if (step->step <= last_step_) events_->forget_after(step->step - 1, step->time);
    last_step_ = step->step;
  }
  events_->record(record);
  events_->flush();
}

void RunLog::sync() {
  metrics_.sync();
}

}  // namespace hadal::train
