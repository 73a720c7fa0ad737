// Where the tensors of a run are: on the host, or in a GPU's memory, from its start to its end.
#pragma once

#include <string>
#include <vector>

#include "core/cuda/queue.h"
#include "core/tensor.h"

namespace hadal::train {

// On a GPU tensors lie side by side in a few large pieces, outside the pool of step memory: nothing
// is lost to its sizes, all of them are cleared at once, and those of a layer's experts, asked for
// in their order, are equally far apart. On the host each is by itself.
class RunMemory {
 public:
  explicit RunMemory(cuda::Queue* gpu = nullptr) : gpu_(gpu) {}

  // Lives as long as its users, who must be gone before the GPU's queue is.
  [[nodiscard]] Tensor zeros(const Shape& shape, DType dtype);
  // Clears all that was handed out. For a GPU's.
  void clear() const;
  [[nodiscard]] cuda::Queue* gpu() const { return gpu_; }  // null: the host

 private:
  cuda::Queue* gpu_;
  std::vector<Tensor> pieces_;
  std::size_t used_ = 0;  // of the last piece
  std::size_t held_ = 0;
};

// What a run saves and restores. Tensors share their owner's storage.
struct NamedTensor {
  std::string name;
  Tensor tensor;
  cuda::Queue* gpu = nullptr;  // that has the bytes; null: the host

  // The bytes where they can be read: the tensor itself, or a copy of a GPU's.
  [[nodiscard]] Tensor on_host() const;
  // From the host, of equal size.
  void assign(const TensorView& host) const;
  // From a tensor on the same device, of equal size.
  void copy_from(const Tensor& other) const;
};

}  // namespace hadal::train
