// Where work runs: threads of this machine, or a GPU. CUDA's own names stay in core/cuda and
// kernels/cuda.
#pragma once

#include "core/tensor.h"
#include "core/thread_pool.h"

namespace hadal {

namespace cuda {
class Queue;
}

// Work given to a stream happens in order. `pool` and `queue` must outlive the stream.
class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(&pool) {}
  // A GPU's: kernels run on `queue`, and `pool` does what the host has to do beside them.
  Stream(ThreadPool& pool, cuda::Queue& queue) : pool_(&pool), queue_(&queue) {}

  [[nodiscard]] DeviceKind device() const {
    return queue_ == nullptr ? DeviceKind::cpu : DeviceKind::cuda;
  }
  [[nodiscard]] ThreadPool& pool() const { return *pool_; }
  [[nodiscard]] cuda::Queue& cuda() const {
    HADAL_CHECK(queue_ != nullptr);
    return *queue_;
  }

  // Host memory to the device's, in order with the stream's work; `from` may change once this
  // returns. The views have equal sizes.
  void upload(const TensorView& from, const TensorView& to) const;
  // The device's memory to the host's, once all work given so far is done.
  void download(const TensorView& from, const TensorView& to) const;
  // Between two places of the device.
  void copy(const TensorView& from, const TensorView& to) const;
  void zero(const TensorView& x) const;
  void wait() const;  // until all work given so far is done

 private:
  ThreadPool* pool_;
  cuda::Queue* queue_ = nullptr;
};

}  // namespace hadal
