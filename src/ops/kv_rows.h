#pragma once

#include <span>
#include <vector>

#include "kernels/kv_rows.h"
#include "ops/exec_context.h"

namespace hadal::ops {

// KV rows of one step, in the cache's storage format.
struct StepRows {
  Tensor storage;  // [n_rows, row_bytes] u8
  std::byte* page = nullptr;
  KvRowFormat format;
  std::int64_t n_rows = 0;
  Tensor source;  // what was rounded, when a tape wants its gradient: rounding passes it straight
  // Borrows this object: it must stay where it is while the view is used.
  [[nodiscard]] PagedRows view() const { return {format, {&page, 1}, n_rows}; }
};

// Rounds x [n_rows, width] to `format`: from here on the step reads what later steps will read.
[[nodiscard]] StepRows store_step_rows(ExecContext& ctx, const Tensor& x,
                                       const KvRowFormat& format);

// Rounds rows of x [n_rows, width] into caches.
void store_rows(ExecContext& ctx, const Tensor& x, std::span<const StoreRange> ranges);

// Copies rows of a step into rings. A ring without pages takes none.
void copy_to_rings(ExecContext& ctx, const StepRows& from, std::vector<CopyRange> ranges);

}  // namespace hadal::ops
