// Work for a thread of its own, of which only so much may wait.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace hadal::cache {

// Runs jobs in order. A job must not throw. Any thread may push.
class WriteQueue {
 public:
  explicit WriteQueue(std::size_t max_bytes);
  ~WriteQueue();  // runs what waits

  enum class WhenFull : std::uint8_t { refuse, wait };
  // False when jobs of `max_bytes` wait already and this one would be too much. A job may always
  // wait alone, however large.
  [[nodiscard]] bool push(std::size_t nbytes, std::function<void()> job, WhenFull when_full);
  void drain();  // returns when nothing waits or runs
  // Forgets what waits; a job that runs goes on. Returns how many were forgotten.
  std::size_t clear();
  [[nodiscard]] std::size_t bytes() const;  // of jobs that wait or run

 private:
  struct Job {
    std::size_t nbytes;
    std::function<void()> run;
  };
  void work();

  const std::size_t max_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable added_, finished_;
  std::deque<Job> jobs_;
  std::size_t bytes_ = 0;
  bool running_ = false, stopping_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace hadal::cache
