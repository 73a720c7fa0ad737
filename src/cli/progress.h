#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

#include "core/units.h"

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

  // `note`, if any, stands behind the time left, where there is room.
  void update(std::size_t done, std::size_t total, std::string_view note = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Unit unit_;
  bool enabled_;
  bool shown_ = false;
  Clock::time_point begin_ = Clock::now(), last_{};
};

// Width of the terminal behind a descriptor; 80 where there is none.
[[nodiscard]] std::size_t terminal_columns(int descriptor);

}  // namespace hadal::cli
