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
  // Readable from a Ctrl-C until clear(), for a poll() that waits for it and for something else: a
  // signal that came just before the poll, or that another thread took, is seen by it too. Negative
  // while no guard exists.
  [[nodiscard]] static int descriptor();
  static void clear();
  // Throws Error cancelled when Ctrl-C was pressed, for work that is undone by unwinding.
  static void throw_if_interrupted();
};

inline constexpr int kInterruptedStatus = 130;  // of the program; what shells expect: 128 + SIGINT

}  // namespace hadal::cli
