#include "ops/compress_kv.h"

namespace hadal::ops {

// NOLINTNEXTLINE(performance-unnecessary-value-param): by value, since the kernel writes over it
Tensor compress_kv(ExecContext& ctx, const Tensor& kv, Tensor gate, const Tensor& position_bias,
                   bool overlap, std::span<const CompressSequence> sequences) {
  expect_shape(gate, kv.shape(), "compress_kv: gate");
  const std::int64_t ratio = position_bias.dim(0);
  expect_shape(position_bias, {ratio, kv.dim(1)}, "compress_kv: position_bias");
  std::int64_t n_entries = 0;
  for (const CompressSequence& s : sequences) {
    n_entries += (s.start + s.end - s.begin) / ratio - s.start / ratio;
  }
  Tensor entries = ctx.activation({n_entries, kv.dim(1) / (overlap ? 2 : 1)});
  ctx.launch(kCompressKv, entries.dtype(),
             CompressKvArgs{.entries = entries,
                            .kv = kv,
                            .gate = gate,
                            .position_bias = position_bias,
                            .ratio = ratio,
                            .overlap = overlap,
                            .sequences = sequences});
  return entries;
}

}  // namespace hadal::ops
