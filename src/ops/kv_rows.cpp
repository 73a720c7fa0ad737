#include "ops/kv_rows.h"

namespace hadal::ops {

StepRows store_step_rows(ExecContext& ctx, const Tensor& x, const KvRowFormat& format) {
  StepRows rows;
  rows.n_rows = x.dim(0);
  rows.format = format;
  rows.storage = ctx.empty({rows.n_rows, format.row_bytes()}, DType::u8);
  rows.page = rows.storage.bytes();
  store_rows(ctx, x, rows.view(), 0);
  if (ctx.tape_for(x) != nullptr) rows.source = x;
  return rows;
}

void store_rows(ExecContext& ctx, const Tensor& x, const PagedRows& rows, std::int64_t first) {
  HADAL_CHECK(x.dim(1) == rows.format.width);
  ctx.launch(kStoreRows, x.dtype(), StoreRowsArgs{.x = x, .rows = rows, .first = first});
}

void copy_to_ring(ExecContext& ctx, const StepRows& from, std::int64_t from_first, std::int64_t n,
                  const PagedRows& ring, std::int64_t first, std::int64_t modulus) {
  if (ring.pages.empty()) return;
  ctx.launch(kCopyRows, ctx.activation_dtype(),
             CopyRowsArgs{.from = from.view(),
                          .to = ring,
                          .n_rows = n,
                          .from_first = from_first,
                          .first = first,
                          .modulus = modulus});
}

}  // namespace hadal::ops
