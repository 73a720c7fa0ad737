#include "cli/train_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "cli/progress.h"

namespace hadal::cli {

namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr std::size_t kLogColumns = 200;  // of a file: everything fits

}  // namespace

TrainProgress::TrainProgress(std::int64_t total_tokens, double seconds_between)
    : meter_(total_tokens),
      seconds_between_(seconds_between),
      is_terminal_(::isatty(STDERR_FILENO) == 1) {}

TrainProgress::~TrainProgress() {
  finish();
}

void TrainProgress::add(const train::StepRecord& record) {
  meter_.add(record);
  pending_ = true;
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  // The first step is shown at once: it tells that everything works.
  if (last_ != Clock::time_point{} && since < (is_terminal_ ? kRedrawSeconds : seconds_between_)) {
    return;
  }
  last_ = now;
  show();
}

void TrainProgress::say(const std::string& sentence) {
  wipe();
  fmt::print(stderr, "hadal: {}\n", sentence);
  if (is_terminal_) show();
}

void TrainProgress::finish() {
  if (pending_) show();
  if (shown_) std::fputs("\n", stderr);
  shown_ = false;
}

void TrainProgress::wipe() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

void TrainProgress::show() {
  const std::string line =
      meter_.line(is_terminal_ ? terminal_columns(STDERR_FILENO) - 1 : kLogColumns);
  if (line.empty()) return;
  pending_ = false;
  if (is_terminal_) {
    std::fputs(("\r\x1b[K" + line).c_str(), stderr);
    shown_ = true;
  } else {
    std::fputs((line + "\n").c_str(), stderr);
  }
  std::fflush(stderr);
}

}  // namespace hadal::cli
