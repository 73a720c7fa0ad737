#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace hadal::cli {

// A line on stderr that tells how far something is: percent, amount, rate and the time left. Only
// where stderr is a terminal, and only for what takes longer than half a second.
class ProgressBar {
 public:
  enum class Unit : std::uint8_t { bytes, tokens };
  ProgressBar(std::string label, Unit unit);
  ~ProgressBar();  // wipes the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::size_t done, std::size_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Unit unit_;
  bool enabled_;
  bool shown_ = false;
  Clock::time_point begin_ = Clock::now(), last_{};
};

// "1.50 GiB", "12.3 MiB", "512 B".
[[nodiscard]] std::string format_bytes(double nbytes);
// "1h02m", "3m05s", "4.2 s".
[[nodiscard]] std::string format_seconds(double seconds);

}  // namespace hadal::cli
