// Step memory: buffers that are given back when their last Tensor goes, and handed out again
// without asking the system. After a few steps nothing is allocated any more.
#pragma once

#include <cstddef>
#include <memory>

#include "core/tensor.h"

namespace hadal {

class PoolAllocator {
 public:
  PoolAllocator();
  [[nodiscard]] Tensor empty(Shape shape, DType dtype);  // uninitialised, aligned to 64 bytes
  [[nodiscard]] std::size_t bytes_held() const;          // in use and free, for memory reports
  // In use now, and the most since the last reset: what a step needs.
  [[nodiscard]] std::size_t bytes_in_use() const;
  [[nodiscard]] std::size_t peak_bytes() const;
  void reset_peak();
  void trim();  // frees what is not in use

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared with every Tensor handed out, so it may outlive the pool
};

}  // namespace hadal
