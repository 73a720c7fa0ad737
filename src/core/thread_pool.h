// A fixed set of threads that share loops. The caller is one of them, so a pool of one runs
// everything inline.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace hadal {

class ThreadPool {
 public:
  // n_threads = 0 takes the number of cores this process may use.
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int size() const { return n_threads_; }

  // Calls fn(begin, end) over disjoint ranges that cover [0, n), each at most `grain` long, on any
  // thread in any order; returns when all are done. Results must not depend on the split: that is
  // what keeps them equal on every machine. The first exception is rethrown here. Not reentrant:
  // a loop started inside a loop runs inline.
  template <class Fn>
  void parallel_for(std::int64_t n, std::int64_t grain, Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    run(n, grain, &fn,
        [](void* f, std::int64_t begin, std::int64_t end) { (*static_cast<F*>(f))(begin, end); });
  }

  // A grain that gives each thread a few ranges of at least `min_items`.
  [[nodiscard]] std::int64_t grain_for(std::int64_t n, std::int64_t min_items) const {
    const std::int64_t even = (n + 4 * n_threads_ - 1) / (4 * n_threads_);
    return even < min_items ? min_items : even;
  }

 private:
  using RangeFn = void (*)(void*, std::int64_t, std::int64_t);
  void run(std::int64_t n, std::int64_t grain, void* fn, RangeFn call);
  void work();
  [[nodiscard]] bool join();
  void worker_main();

  int n_threads_;
  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> epoch_{0};  // a new loop bumps it; idle workers wait on it
  // Who is in the current loop: kOpen while workers may join, plus the number that did and have not
  // left. The caller waits for those only, so a worker that the system does not run costs nothing.
  static constexpr std::uint32_t kOpen = 1U << 31;
  std::atomic<std::uint32_t> gate_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<std::int64_t> next_{0};
  std::int64_t n_ = 0, grain_ = 1;
  void* fn_ = nullptr;
  RangeFn call_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace hadal
