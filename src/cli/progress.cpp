#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace hadal::cli {

namespace {

constexpr double kAppearAfterSeconds = 0.5, kRedrawSeconds = 0.1;
constexpr int kMaxBarWidth = 30;

}  // namespace

std::size_t terminal_columns(int descriptor) {
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

ProgressBar::ProgressBar(std::string label, Unit unit)
    : label_(std::move(label)), unit_(unit), enabled_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(std::size_t done, std::size_t total, std::string_view note) {
  if (!enabled_ || total == 0) return;
  const auto now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  if (elapsed < kAppearAfterSeconds) return;
  if (shown_ && std::chrono::duration<double>(now - last_).count() < kRedrawSeconds) return;
  shown_ = true;
  last_ = now;

  const double part = static_cast<double>(done) / static_cast<double>(total);
  const double rate = static_cast<double>(done) / elapsed;
  const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
  const std::string figures =
      unit_ == Unit::bytes
          ? fmt::format("{} of {}, {}/s", format_bytes(static_cast<double>(done)),
                        format_bytes(static_cast<double>(total)), format_bytes(rate))
          : fmt::format("{} of {} tokens, {:.0f}/s", done, total, rate);
  const std::string text =
      fmt::format(" {:3.0f} %  {}, {} left{}{}", 100 * part, figures,
                  rate > 0 ? format_seconds(left) : "unknown time", note.empty() ? "" : ", ", note);
  const std::size_t columns = terminal_columns(STDERR_FILENO);
  const std::size_t used = label_.size() + 4 + text.size();
  std::string bar;
  if (used + 8 <= columns) {
    const auto width = static_cast<int>(std::min<std::size_t>(kMaxBarWidth, columns - used - 1));
    const int full = static_cast<int>(std::lround(part * width));
    bar = fmt::format(" [{:=<{}}{: <{}}]", "", full, "", width - full);
  }
  const std::string line = label_ + bar + text;
  std::fputs(("\r\x1b[K" + line.substr(0, columns - 1)).c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace hadal::cli
