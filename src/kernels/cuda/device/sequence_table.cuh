// The sequences of a call in device memory, and how a block finds the one it works for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/device/paged_rows.cuh"

namespace hadal::kernels::cuda {

// The page tables of all sequences of a call, sent in one copy.
class PageTables {
 public:
  // The pages of rows [0, n_rows), which are all that the call may look at.
  std::size_t add(const PagedRows& rows, std::int64_t n_rows) {
    const std::size_t at = pages_.size();
    if (n_rows <= 0) return at;
    const auto n = static_cast<std::size_t>((n_rows - 1) / rows.rows_per_page + 1);
    for (std::size_t i = 0; i < std::min(n, rows.pages.size()); ++i) {
      pages_.push_back(rows.pages[i]);
      address_bits_ |= reinterpret_cast<std::uintptr_t>(rows.pages[i]);
    }
    return at;
  }
  void send(Stream& stream) {
    if (pages_.empty()) return;
    base_ = reinterpret_cast<const std::byte* const*>(
        stream.cuda().stage(pages_.data(), pages_.size() * sizeof(std::byte*)));
  }
  // After send(): the rows whose table add() placed at `at`.
  [[nodiscard]] DeviceRows rows(const PagedRows& rows, std::size_t at) const {
    return base_ == nullptr ? DeviceRows{} : device_rows(rows, base_ + at);
  }
  [[nodiscard]] bool aligned(std::uintptr_t n_bytes) const { return address_bits_ % n_bytes == 0; }

 private:
  std::vector<std::byte*> pages_;
  std::uintptr_t address_bits_ = 0;
  const std::byte* const* base_ = nullptr;
};

// A stored row. 32-bit numbers: a 64-bit division costs a hundred instructions.
struct RowAddress {
  const std::byte* data = nullptr;
  const std::byte* scales = nullptr;
};
__device__ __forceinline__ RowAddress address_of(const DeviceRows& rows, std::uint32_t row) {
  const auto per_page = static_cast<std::uint32_t>(rows.rows_per_page);
  const std::uint32_t page = row / per_page, at = row - page * per_page;
  const std::byte* base = rows.pages[page];
  return {base + std::int64_t{at} * rows.data_bytes,
          base + std::int64_t{per_page} * rows.data_bytes + std::int64_t{at} * rows.scale_bytes};
}

// The sequence with begin <= row < end, or null: every thread of the block looks at a few, so that
// it takes one trip to memory. `found` is a word of shared memory; all threads take part.
template <class Sequence>
__device__ __forceinline__ const Sequence* find_sequence(const Sequence* sequences, int n,
                                                         std::int64_t row, int* found) {
  if (threadIdx.x == 0) *found = -1;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    if (sequences[i].begin <= row && row < sequences[i].end) *found = i;
  }
  __syncthreads();
  return *found < 0 ? nullptr : sequences + *found;
}

}  // namespace hadal::kernels::cuda
