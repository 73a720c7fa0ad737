#include "core/allocator.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <vector>

#include <fmt/format.h>

namespace hadal {

namespace {
// Sizes are rounded up to one of four steps per power of two: at most a quarter is wasted.
constexpr std::size_t kMinBytes = 256;
std::size_t size_class_bytes(std::size_t bytes) {
  if (bytes <= kMinBytes) return kMinBytes;
  const std::size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}
std::size_t size_class_index(std::size_t class_bytes) {
  const int log = std::bit_width(class_bytes) - 1;
  const std::size_t quarter = (class_bytes >> (log - 2)) & 3U;
  return static_cast<std::size_t>(log) * 4 + quarter;
}
}  // namespace

struct PoolAllocator::State {
  std::shared_ptr<MemorySource> source;
  std::mutex mutex;
  std::array<std::vector<std::byte*>, 256> free;
  std::size_t bytes = 0;  // held
  std::size_t in_use = 0, peak = 0;

  void release_free() {
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < free.size(); ++i) {
      for (std::byte* p : free[i]) {
        bytes -= (std::size_t{1} << (i / 4)) / 4 * (4 + i % 4);
        source->release(p);
      }
      free[i].clear();
    }
  }
  ~State() { release_free(); }
};

std::shared_ptr<MemorySource> host_memory() {
  class Host final : public MemorySource {
    std::byte* allocate(std::size_t bytes) override {
      return static_cast<std::byte*>(std::aligned_alloc(64, bytes));
    }
    void release(std::byte* memory) noexcept override { std::free(memory); }
    [[nodiscard]] std::string name() const override { return "host memory"; }
  };
  return std::make_shared<Host>();
}

PoolAllocator::PoolAllocator(std::shared_ptr<MemorySource> source)
    : state_(std::make_shared<State>()) {
  state_->source = std::move(source);
}

Tensor PoolAllocator::empty(Shape shape, DType dtype) {
  const std::size_t bytes = size_class_bytes(nbytes(shape, dtype));
  const std::size_t index = size_class_index(bytes);
  std::byte* memory = nullptr;
  {
    const std::lock_guard lock(state_->mutex);
    state_->in_use += bytes;
    state_->peak = std::max(state_->peak, state_->in_use);
    auto& free = state_->free[index];
    if (!free.empty()) {
      memory = free.back();
      free.pop_back();
    }
  }
  if (memory == nullptr) {
    memory = state_->source->allocate(bytes);
    if (memory == nullptr) {
      state_->release_free();  // buffers of other sizes may be what is in the way
      memory = state_->source->allocate(bytes);
    }
    if (memory == nullptr) {
      const std::lock_guard lock(state_->mutex);
      state_->in_use -= bytes;
      throw Error(ErrorCode::out_of_memory,
                  fmt::format("cannot allocate {} bytes of {} for a tensor {} {}; this pool holds "
                              "{} bytes",
                              bytes, state_->source->name(), to_string(shape), to_string(dtype),
                              state_->bytes));
    }
    const std::lock_guard lock(state_->mutex);
    state_->bytes += bytes;
  }
  auto give_back = [state = state_, index, bytes](std::byte* p) {
    const std::lock_guard lock(state->mutex);
    state->in_use -= bytes;
    state->free[index].push_back(p);
  };
  return {std::shared_ptr<std::byte>(memory, std::move(give_back)), shape, dtype};
}

std::size_t PoolAllocator::bytes_held() const {
  const std::lock_guard lock(state_->mutex);
  return state_->bytes;
}

std::size_t PoolAllocator::bytes_in_use() const {
  const std::lock_guard lock(state_->mutex);
  return state_->in_use;
}

std::size_t PoolAllocator::peak_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->peak;
}

void PoolAllocator::reset_peak() {
  const std::lock_guard lock(state_->mutex);
  state_->peak = state_->in_use;
}

void PoolAllocator::trim() {
  state_->release_free();
}

}  // namespace hadal
