#include "ops/kv_rows.h"

namespace hadal::ops {

StepRows store_step_rows(ExecContext& ctx, const Tensor& x, const KvRowFormat& format) {
  StepRows rows;
  rows.n_rows = x.dim(0);
  rows.format = format;
  rows.storage = ctx.empty({rows.n_rows, format.row_bytes()}, DType::u8);
  rows.page = rows.storage.bytes();
  const StoreRange all{.begin = 0, .end = rows.n_rows, .rows = rows.view()};
  store_rows(ctx, x, {&all, 1});
  if (ctx.tape_for(x) != nullptr) rows.source = x;
  return rows;
}

void store_rows(ExecContext& ctx, const Tensor& x, std::span<const StoreRange> ranges) {
  for (const StoreRange& r : ranges) HADAL_CHECK(x.dim(1) == r.rows.format.width);
  ctx.launch(kStoreRows, x.dtype(), StoreRowsArgs{.x = x, .ranges = ranges});
}

void copy_to_rings(ExecContext& ctx, const StepRows& from, std::vector<CopyRange> ranges) {
  std::erase_if(ranges, [](const CopyRange& r) { return r.to.pages.empty(); });
  if (ranges.empty()) return;
  ctx.launch(kCopyRows, ctx.activation_dtype(),
             CopyRowsArgs{.from = from.view(), .ranges = ranges});
}

}  // namespace hadal::ops
