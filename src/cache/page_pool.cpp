#include "cache/page_pool.h"

#include <cstring>
#include <limits>
#include <mutex>
#include <vector>

namespace hadal::cache {

struct PagePool::State {
  std::mutex mutex;
  std::vector<std::unique_ptr<Page>> free;
  std::int64_t n_used = 0;
};

Tensor DeviceMemory::zeros(std::size_t n_bytes) const {
  const Shape shape{static_cast<std::int64_t>(n_bytes)};
  if (on_host()) return Tensor::zeros(shape, DType::u8);
  Tensor t = allocator->empty(shape, DType::u8);
  stream->zero(t);
  return t;
}

void DeviceMemory::zero(const Tensor& t) const {
  if (on_host()) {
    std::memset(t.bytes(), 0, t.nbytes());
  } else {
    stream->zero(t);
  }
}

std::span<const std::byte> DeviceMemory::read(const Tensor& t,
                                              std::vector<std::byte>& buffer) const {
  if (on_host()) return {t.bytes(), t.nbytes()};
  buffer.resize(t.nbytes());
  stream->download(t, {buffer.data(), t.shape(), t.dtype()});
  return buffer;
}

void DeviceMemory::write(std::span<const std::byte> bytes, const Tensor& t) const {
  HADAL_CHECK(bytes.size() == t.nbytes());
  if (on_host()) {
    std::memcpy(t.bytes(), bytes.data(), bytes.size());
  } else {
    // Only read from, but a view has no constness.
    stream->upload({const_cast<std::byte*>(bytes.data()), t.shape(), t.dtype()}, t);
  }
}

PagePool::PagePool(std::size_t page_bytes, std::size_t budget_bytes, DeviceMemory memory)
    : page_bytes_(page_bytes),
      memory_(memory),
      n_total_(budget_bytes == 0 || page_bytes == 0
                   ? std::numeric_limits<std::int64_t>::max()
                   : static_cast<std::int64_t>(budget_bytes / page_bytes)),
      state_(std::make_shared<State>()) {}

PageRef PagePool::acquire() {
  std::unique_ptr<Page> page;
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->n_used >= n_total_) return nullptr;
    ++state_->n_used;
    if (!state_->free.empty()) {
      page = std::move(state_->free.back());
      state_->free.pop_back();
    }
  }
  try {
    // Zeros, since a file of pages holds their unused bytes, too.
    if (!page) {
      page = std::make_unique<Page>(memory_.zeros(page_bytes_), memory_);
    }
    // So that giving a page back never allocates: it may happen while memory is short.
    const std::lock_guard lock(state_->mutex);
    const std::size_t wanted = static_cast<std::size_t>(state_->n_used) + state_->free.size();
    if (state_->free.capacity() < wanted) state_->free.reserve(2 * wanted);
  } catch (...) {
    const std::lock_guard lock(state_->mutex);
    --state_->n_used;
    throw;
  }
  return {page.release(), [state = state_](Page* used) noexcept {
            std::unique_ptr<Page> back(used);
            const std::lock_guard lock(state->mutex);
            --state->n_used;
            state->free.push_back(std::move(back));
          }};
}

std::int64_t PagePool::n_used() const {
  const std::lock_guard lock(state_->mutex);
  return state_->n_used;
}

std::size_t PagePool::bytes_held() const {
  const std::lock_guard lock(state_->mutex);
  return (static_cast<std::size_t>(state_->n_used) + state_->free.size()) * page_bytes_;
}

void PagePool::trim() {
  const std::lock_guard lock(state_->mutex);
  state_->free.clear();
}

}  // namespace hadal::cache
