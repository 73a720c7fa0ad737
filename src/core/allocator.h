// Step memory: buffers that are given back when their last Tensor goes, and handed out again
// without asking the system. After a few steps nothing is allocated any more.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace hadal {

// Where a pool takes its memory from. Outlives every piece that it gave.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  [[nodiscard]] virtual std::byte* allocate(std::size_t bytes) = 0;  // null: there is no more
  virtual void release(std::byte* memory) noexcept = 0;
  [[nodiscard]] virtual std::string name() const = 0;  // for messages: "host memory"
};
[[nodiscard]] std::shared_ptr<MemorySource> host_memory();

class PoolAllocator {
 public:
  explicit PoolAllocator(std::shared_ptr<MemorySource> source = host_memory());
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
