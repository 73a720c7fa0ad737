#include "cli/interrupt.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>

#include "core/error.h"

namespace hadal::cli {

namespace {

std::atomic<bool> interrupted{false};
std::atomic<int> wake{-1};                              // an eventfd
static_assert(std::atomic<bool>::is_always_lock_free);  // or a handler could not set it
static_assert(std::atomic<int>::is_always_lock_free);

struct sigaction previous;

extern "C" void on_interrupt(int) {
  if (interrupted.exchange(true)) std::_Exit(kInterruptedStatus);
  const int saved_errno = errno;
  const std::uint64_t one = 1;
  if (::write(wake, &one, sizeof one) < 0) errno = saved_errno;  // the flag is set in any case
}

}  // namespace

InterruptGuard::InterruptGuard() {
  wake = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake < 0) throw Error(ErrorCode::io, "cannot watch for Ctrl-C: no file descriptor is left");
  clear();
  struct sigaction action{};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a waiting read comes back
  ::sigaction(SIGINT, &action, &previous);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &previous, nullptr);
  ::close(wake.exchange(-1));
}

const std::atomic<bool>& InterruptGuard::flag() {
  return interrupted;
}

int InterruptGuard::descriptor() {
  return wake;
}

void InterruptGuard::clear() {
  // This order: a Ctrl-C that falls between the two leaves the descriptor readable, never hidden.
  std::uint64_t count = 0;
  (void)!::read(wake, &count, sizeof count);
  interrupted = false;
}

void InterruptGuard::throw_if_interrupted() {
  if (interrupted) throw Error(ErrorCode::cancelled, "interrupted; nothing was written");
}

}  // namespace hadal::cli
