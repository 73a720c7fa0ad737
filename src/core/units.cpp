#include "core/units.h"

#include <fmt/format.h>

#include <cmath>

namespace hadal {

std::string format_bytes(double nbytes) {
  constexpr double kKiB = 1024.0;
  if (nbytes >= kKiB * kKiB * kKiB) return fmt::format("{:.2f} GiB", nbytes / (kKiB * kKiB * kKiB));
  if (nbytes >= kKiB * kKiB) return fmt::format("{:.1f} MiB", nbytes / (kKiB * kKiB));
  if (nbytes >= kKiB) return fmt::format("{:.1f} KiB", nbytes / kKiB);
  return fmt::format("{:.0f} B", nbytes);
}

std::string format_seconds(double seconds) {
  const auto whole = std::llround(seconds);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{:.1f} s", seconds);
}

std::string format_count(double n) {
  constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  constexpr std::size_t kLargest = std::size(kPrefixes) - 1;
  double value = n;
  std::size_t power = 0;
  // 999.5 would print as 1000.
  while (std::fabs(value) >= 999.5 && power < kLargest) value /= 1000.0, ++power;
  const double magnitude = std::fabs(value);
  if (power == 0 && value == std::floor(value)) return fmt::format("{:.0f}", value);
  if (magnitude >= 99.95) return fmt::format("{:.0f}{}", value, kPrefixes[power]);
  if (magnitude >= 9.995) return fmt::format("{:.1f}{}", value, kPrefixes[power]);
  return fmt::format("{:.2f}{}", value, kPrefixes[power]);
}

}  // namespace hadal
