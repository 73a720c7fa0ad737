// Memory of pages: allocated when first needed, given back when the last reference goes, reused.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/allocator.h"
#include "core/device.h"

namespace hadal::cache {

// Where a cache's memory is; both null: on the host.
struct DeviceMemory {
  const Stream* stream = nullptr;
  PoolAllocator* allocator = nullptr;

  [[nodiscard]] bool on_host() const { return stream == nullptr; }
  [[nodiscard]] Tensor zeros(std::size_t n_bytes) const;
  void zero(const Tensor& t) const;
  // The bytes of t where the host can read them: t itself, or a copy in `buffer`. On any thread.
  [[nodiscard]] std::span<const std::byte> read(const Tensor& t,
                                                std::vector<std::byte>& buffer) const;
  void write(std::span<const std::byte> bytes, const Tensor& t) const;  // all of them
};

// The compressed entries and indexer keys of `page_tokens` consecutive positions in all layers: one
// piece of memory. Once its positions are settled it never changes, so that sequences, the prefix
// cache and a writer of files share it by reference.
class Page {
 public:
  Page(Tensor memory, DeviceMemory where) : memory_(std::move(memory)), where_(where) {}
  [[nodiscard]] std::byte* bytes() const { return memory_.bytes(); }  // of the device
  [[nodiscard]] std::size_t nbytes() const { return memory_.nbytes(); }
  [[nodiscard]] bool on_host() const { return where_.on_host(); }

  // The bytes where the host can read them: the page itself, or a copy in `buffer`. On any thread.
  [[nodiscard]] std::span<const std::byte> read(std::vector<std::byte>& buffer) const {
    return where_.read(memory_, buffer);
  }
  void write(std::span<const std::byte> bytes) const { where_.write(bytes, memory_); }

 private:
  Tensor memory_;
  DeviceMemory where_;
};

// References may outlive the pool and may be dropped on any thread.
using PageRef = std::shared_ptr<Page>;

class PagePool {
 public:
  // At most budget_bytes / page_bytes pages at a time; a budget of 0 sets no limit.
  // With a stream, pages are memory of its device, and all of them must go before it does.
  PagePool(std::size_t page_bytes, std::size_t budget_bytes, DeviceMemory memory = {});

  // A page, or null when the budget is spent. A page that was never used is zero; a reused one
  // holds what it held, which nobody reads: rows count from the moment they are written.
  [[nodiscard]] PageRef acquire();

  [[nodiscard]] std::size_t page_bytes() const { return page_bytes_; }
  [[nodiscard]] std::int64_t n_total() const { return n_total_; }  // max of int64: no limit
  [[nodiscard]] std::int64_t n_used() const;                       // with a reference somewhere
  [[nodiscard]] std::int64_t n_free() const { return n_total_ - n_used(); }
  [[nodiscard]] std::size_t bytes_held() const;  // used pages and those kept for reuse
  void trim();                                   // frees those that are kept for reuse

 private:
  struct State;
  std::size_t page_bytes_;
  DeviceMemory memory_;
  std::int64_t n_total_;
  std::shared_ptr<State> state_;  // shared with every page
};

}  // namespace hadal::cache
