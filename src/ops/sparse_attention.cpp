#include "ops/sparse_attention.h"

namespace hadal::ops {

Tensor sparse_attention(ExecContext& ctx, const Tensor& q, const PagedRows& new_rows,
                        const Tensor& sinks, const Tensor& selected,
                        const AttentionOptions& options,
                        std::span<const AttentionSequence> sequences) {
  expect_shape(sinks, {q.dim(1)}, "sparse_attention: sinks");
  HADAL_CHECK(new_rows.format.width == q.dim(2));
  Tensor o = ctx.empty(q.shape(), q.dtype());
  ctx.launch(kSparseAttention, q.dtype(),
             SparseAttentionArgs{.o = o,
                                 .q = q,
                                 .new_rows = new_rows,
                                 .sinks = sinks,
                                 .selected = selected,
                                 .window = options.window,
                                 .ratio = options.ratio,
                                 .softmax_scale = options.softmax_scale,
                                 .sequences = sequences});
  return o;
}

}  // namespace hadal::ops
