#pragma once

#include <atomic>

namespace hadal::cli {

// While one exists, Ctrl-C sets a flag instead of ending the program; a second Ctrl-C before
// anyone looked ends it after all. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();  // the signal does what it did before
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  [[nodiscard]] static const std::atomic<bool>& flag();
  static void clear();
};

}  // namespace hadal::cli
