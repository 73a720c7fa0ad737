// Rows of a KV cache: formats, and views of rows that lie in pages.
#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

// How one KV row is stored.
//   f32        width floats
//   fp8_mixed  the first `width - rope` values in E4M3 with a scale per 64, the rest (already
//              rotated) in bf16
//   fp4        all values in E2M1 with a scale per 32
// A page keeps the rows of its entries first and their scales after them, so that a page of fp4
// rows is also an MXFP4 matrix.  Source: architecture.md §4.2.
enum class KvRowKind : std::uint8_t { f32, fp8_mixed, fp4 };

struct KvRowFormat {
  KvRowKind kind = KvRowKind::f32;
  std::int64_t width = 0;
  std::int64_t rope = 0;  // trailing values kept in bf16; fp8_mixed only

  [[nodiscard]] std::int64_t data_bytes() const;   // of one row, without scales
  [[nodiscard]] std::int64_t scale_bytes() const;  // of one row, padded: 8 for 7 scales
  [[nodiscard]] std::int64_t row_bytes() const { return data_bytes() + scale_bytes(); }
};

// `n_rows` rows spread over equal pages; row i is row i % rows_per_page of page i / rows_per_page.
struct PagedRows {
  KvRowFormat format;
  std::span<std::byte* const> pages;
  std::int64_t rows_per_page = 0;

  [[nodiscard]] std::byte* data(std::int64_t row) const {
    return pages[static_cast<std::size_t>(row / rows_per_page)] +
           row % rows_per_page * format.data_bytes();
  }
  [[nodiscard]] std::byte* scale(std::int64_t row) const {
    return pages[static_cast<std::size_t>(row / rows_per_page)] +
           rows_per_page * format.data_bytes() + row % rows_per_page * format.scale_bytes();
  }
};

// Some rows of x and where they go: row begin + i at slot (first + i) % modulus (0: no wrap). With
// a ring shorter than the range only the newest rows survive.
struct StoreRange {
  std::int64_t begin = 0, end = 0;
  PagedRows rows;
  std::int64_t first = 0;
  std::int64_t modulus = 0;
};

// Rounds rows of x to the row format, those of all sequences of a step at once.
struct StoreRowsArgs {
  TensorView x;  // [n_rows, width]  bf16 | f32
  std::span<const StoreRange> ranges;
};
inline constexpr KernelName<StoreRowsArgs> kStoreRows{"store_kv_rows"};

// Stored rows [begin, end) of one place and where their copies go, as above.
struct CopyRange {
  std::int64_t begin = 0, end = 0;
  PagedRows to;  // of the format of `from`
  std::int64_t first = 0;
  std::int64_t modulus = 0;
};
struct CopyRowsArgs {
  PagedRows from;
  std::span<const CopyRange> ranges;
};
inline constexpr KernelName<CopyRowsArgs> kCopyRows{"copy_kv_rows"};

// Rows of a range that a ring has no room for.
template <class Range>
[[nodiscard]] constexpr std::int64_t skipped_rows(const Range& r) {
  const std::int64_t n = r.end - r.begin;
  return r.modulus > 0 && n > r.modulus ? n - r.modulus : 0;
}

}  // namespace hadal
