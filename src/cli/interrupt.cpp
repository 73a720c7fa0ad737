#include "cli/interrupt.h"

#include <csignal>
#include <cstdlib>

#include "core/error.h"

namespace hadal::cli {

namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // or a handler could not set it

struct sigaction previous;

extern "C" void on_interrupt(int) {
  if (interrupted.exchange(true)) std::_Exit(kInterruptedStatus);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  clear();
  struct sigaction action{};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a waiting read comes back
  ::sigaction(SIGINT, &action, &previous);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &previous, nullptr);
}

const std::atomic<bool>& InterruptGuard::flag() {
  return interrupted;
}

void InterruptGuard::clear() {
  interrupted = false;
}

void InterruptGuard::throw_if_interrupted() {
  if (interrupted) throw Error(ErrorCode::cancelled, "interrupted; nothing was written");
}

}  // namespace hadal::cli
