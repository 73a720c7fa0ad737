// Where work runs. cuda/ will add its halves; a CPU stream is a thread pool.
#pragma once

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace hadal {

// Work given to a stream happens in order. `pool` must outlive the stream.
class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(&pool) {}
  [[nodiscard]] DeviceKind device() const { return DeviceKind::cpu; }
  [[nodiscard]] ThreadPool& pool() const { return *pool_; }

 private:
  ThreadPool* pool_;
};

}  // namespace hadal
