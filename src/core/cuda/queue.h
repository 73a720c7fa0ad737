// core/cuda: GPUs, their memory and the order of work on them. This header names nothing of CUDA's,
// so that everybody may include it; a build without CUDA has the same names, and they say so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/allocator.h"

namespace hadal::cuda {

struct DeviceInfo {
  int index = 0;
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability: 9, 0
  int n_multiprocessors = 0;
  std::size_t total_bytes = 0, free_bytes = 0;
  std::string driver;  // the newest CUDA that the driver runs: "13.0"
};

// The compute capability that the kernels are built for.
inline constexpr int kWantedMajor = 9, kWantedMinor = 0;

[[nodiscard]] bool built_with_cuda();

struct DeviceList {
  std::vector<DeviceInfo> devices;
  std::string why_none;  // a sentence, when there are none
};
[[nodiscard]] DeviceList list_devices();

// One GPU and one order of work on it. Used by one thread at a time.
class Queue {
 public:
  // Throws Error device, saying what was found and what is needed: no CUDA in this build, no
  // driver, no GPU of that index, or one of another architecture.
  explicit Queue(int device_index = 0);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  [[nodiscard]] const DeviceInfo& device() const;
  [[nodiscard]] void* stream() const;  // a cudaStream_t

  // Device memory. What is given back on the host may be handed out again at once: whoever gets it
  // uses it in work that comes after.
  [[nodiscard]] PoolAllocator& memory();
  // One piece of exactly so many bytes, outside the pool: weights.
  [[nodiscard]] Tensor allocate(std::size_t n_bytes);
  [[nodiscard]] Tensor scratch(std::int64_t bytes) { return memory().empty({bytes}, DType::u8); }

  // A copy of small host data, such as the arguments of a launch, for kernels given from now until
  // as much again as the staging buffer has been staged. Asynchronous.
  [[nodiscard]] const std::byte* stage(const void* data, std::size_t n_bytes);
  template <class T>
  [[nodiscard]] const T* stage(std::span<const T> values) {
    return reinterpret_cast<const T*>(stage(values.data(), values.size_bytes()));
  }

  void upload(const void* from, void* to, std::size_t n_bytes);    // `from` is free on return
  void download(const void* from, void* to, std::size_t n_bytes);  // done on return
  void copy(const void* from, void* to, std::size_t n_bytes);
  void zero(void* memory, std::size_t n_bytes);
  void wait();

  // Seconds between two marks in the order of work; waits for the second.
  class Mark;
  [[nodiscard]] std::shared_ptr<Mark> mark();
  [[nodiscard]] static double seconds_between(const Mark& begin, const Mark& end);

 private:
  // Puts a copy into the staging buffer's host half; returns where.
  std::size_t write_staging(const void* data, std::size_t n_bytes);
  struct State;
  std::unique_ptr<State> state_;
};

// Pinned host memory, which the GPU reads and writes at the full speed of the bus.
[[nodiscard]] std::shared_ptr<MemorySource> pinned_memory();

}  // namespace hadal::cuda
