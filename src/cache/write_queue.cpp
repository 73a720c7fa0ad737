#include "cache/write_queue.h"

#include <utility>

namespace hadal::cache {

WriteQueue::WriteQueue(std::size_t max_bytes)
    : max_bytes_(max_bytes), thread_([this] { work(); }) {}

WriteQueue::~WriteQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  added_.notify_all();
  thread_.join();
}

bool WriteQueue::push(std::size_t nbytes, std::function<void()> job, WhenFull when_full) {
  {
    std::unique_lock lock(mutex_);
    const auto fits = [&] { return bytes_ == 0 || bytes_ + nbytes <= max_bytes_; };
    if (when_full == WhenFull::wait) finished_.wait(lock, fits);
    if (!fits()) return false;
    jobs_.push_back({nbytes, std::move(job)});
    bytes_ += nbytes;
  }
  added_.notify_one();
  return true;
}

void WriteQueue::drain() {
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return jobs_.empty() && !running_; });
}

std::size_t WriteQueue::clear() {
  std::deque<Job> forgotten;  // destroyed without the lock: they may hold pages
  {
    const std::lock_guard lock(mutex_);
    forgotten.swap(jobs_);
    for (const Job& job : forgotten) bytes_ -= job.nbytes;
  }
  finished_.notify_all();
  return forgotten.size();
}

std::size_t WriteQueue::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void WriteQueue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    added_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    running_ = true;
    lock.unlock();
    job.run();
    job.run = nullptr;  // lets go of what it holds before anyone hears that it is done
    lock.lock();
    running_ = false;
    bytes_ -= job.nbytes;
    finished_.notify_all();
  }
}

}  // namespace hadal::cache
