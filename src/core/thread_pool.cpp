#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace hadal {

namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1U, std::thread::hardware_concurrency());
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins about as long as a kernel launch takes to follow another, then sleeps in the kernel: a
// decode step has hundreds of short loops, but an idle chat must not burn a core.
constexpr int kSpins = 4000;

thread_local bool inside_loop = false;

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads > 0 ? n_threads : usable_cores()) {
  workers_.reserve(static_cast<std::size_t>(n_threads_ - 1));
  for (int i = 1; i < n_threads_; ++i) workers_.emplace_back([this] { worker_main(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t n, std::int64_t grain, void* fn, RangeFn call) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  if (n_threads_ == 1 || n <= grain || inside_loop) {
    for (std::int64_t begin = 0; begin < n; begin += grain) {
      call(fn, begin, std::min(n, begin + grain));
    }
    return;
  }
  n_ = n, grain_ = grain, fn_ = fn, call_ = call;
  error_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  work();
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);  // nobody joins any more
  int spins = 0;
  for (std::uint32_t inside = gate_.load(std::memory_order_acquire); inside != 0;
       inside = gate_.load(std::memory_order_acquire)) {
    if (++spins < kSpins) {
      pause_briefly();
    } else {
      gate_.wait(inside, std::memory_order_acquire);
    }
  }
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::work() {
  inside_loop = true;
  try {
    for (;;) {
      const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= n_) break;
      call_(fn_, begin, std::min(n_, begin + grain_));
    }
  } catch (...) {
    next_.store(n_, std::memory_order_relaxed);  // nobody starts another range
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
  inside_loop = false;
}

void ThreadPool::worker_main() {
  std::uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    std::uint32_t now = epoch_.load(std::memory_order_acquire);
    while (now == seen) {
      if (++spins < kSpins)
        pause_briefly();
      else
        epoch_.wait(seen, std::memory_order_acquire);
      now = epoch_.load(std::memory_order_acquire);
    }
    seen = now;
    if (stopping_.load()) return;
    if (!join()) continue;
    work();
    if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_one();
  }
}

bool ThreadPool::join() {
  std::uint32_t inside = gate_.load(std::memory_order_acquire);
  while ((inside & kOpen) != 0) {
    if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

}  // namespace hadal
