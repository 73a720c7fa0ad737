// Paged KV rows as kernels see them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cuda/queue.h"
#include "core/device.h"
#include "kernels/kv_rows.h"

namespace hadal::kernels::cuda {

// PagedRows with its table of pages in device memory. Plain data: passed by value or staged.
struct DeviceRows {
  const std::byte* const* pages = nullptr;
  std::int32_t rows_per_page = 1;
  std::int32_t data_bytes = 0, scale_bytes = 0;  // of one row
  std::int32_t width = 0, rope = 0;
  KvRowKind kind = KvRowKind::f32;

  __device__ std::byte* row_data(std::int64_t row) const {
    const auto page = row / rows_per_page, at = row - page * rows_per_page;
    return const_cast<std::byte*>(pages[page]) + at * data_bytes;
  }
  __device__ std::byte* row_scale(std::int64_t row) const {
    const auto page = row / rows_per_page, at = row - page * rows_per_page;
    return const_cast<std::byte*>(pages[page]) + std::int64_t{rows_per_page} * data_bytes +
           at * scale_bytes;
  }
};

// `pages` is the table in device memory; its first page may be any of those of `rows`.
inline DeviceRows device_rows(const PagedRows& rows, const std::byte* const* pages) {
  DeviceRows d;
  d.pages = pages;
  d.rows_per_page = static_cast<std::int32_t>(std::max<std::int64_t>(1, rows.rows_per_page));
  d.data_bytes = static_cast<std::int32_t>(rows.format.data_bytes());
  d.scale_bytes = static_cast<std::int32_t>(rows.format.scale_bytes());
  d.width = static_cast<std::int32_t>(rows.format.width);
  d.rope = static_cast<std::int32_t>(rows.format.rope);
  d.kind = rows.format.kind;
  return d;
}

// Stages the table; valid as long as Queue::stage says.
inline DeviceRows device_rows(Stream& stream, const PagedRows& rows) {
  if (rows.pages.empty()) return {};
  return device_rows(rows, reinterpret_cast<const std::byte* const*>(
                               stream.cuda().stage(rows.pages.data(), rows.pages.size_bytes())));
}

}  // namespace hadal::kernels::cuda
