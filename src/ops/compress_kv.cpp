#include "ops/compress_kv.h"

#include <vector>

#include <fmt/format.h>

#include "ops/elementwise.h"

namespace hadal::ops {

namespace {

// Gate is written over: the position bias is added to it.
Tensor run(ExecContext& ctx, const Tensor& kv, const Tensor& gate, const Tensor& position_bias,
           bool overlap, std::span<const CompressSequence> sequences) {
  const std::int64_t ratio = position_bias.dim(0);
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

// Backward cannot read a tail: by then the step has written over it.
std::vector<CompressSequence> without_tails(std::span<const CompressSequence> sequences) {
  std::vector<CompressSequence> own(sequences.begin(), sequences.end());
  for (CompressSequence& s : own) {
    if (s.start != 0) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("compress_kv: a sequence at position {} has no gradient; with a tape "
                              "a sequence runs in one piece from position 0",
                              s.start));
    }
    s.tail = {};
  }
  return own;
}

}  // namespace

// NOLINTNEXTLINE(performance-unnecessary-value-param): by value, since the kernel writes over it
Tensor compress_kv(ExecContext& ctx, const Tensor& kv, Tensor gate, const Tensor& position_bias,
                   bool overlap, std::span<const CompressSequence> sequences) {
  expect_shape(gate, kv.shape(), "compress_kv: gate");
  expect_shape(position_bias, {position_bias.dim(0), kv.dim(1)}, "compress_kv: position_bias");
  Tape* tape = ctx.tape_for(kv, gate, position_bias);
  if (tape == nullptr) return run(ctx, kv, gate, position_bias, overlap, sequences);

  const Tensor biased = copy(ctx, gate);
  std::vector<CompressSequence> own = without_tails(sequences);
  const Tensor entries = tape->variable(run(ctx, kv, biased, position_bias, overlap, sequences));
  tape->record(
      {.name = "compress_kv",
       .inputs = {kv, gate, position_bias},
       .outputs = {entries},
       .backward =
           [kv = tape->save(kv), biased, ratio = position_bias.dim(0), overlap, own](Backward& b) {
             const Tensor input = b.get(kv);
             const Tensor dkv = b.ctx().empty(input.shape(), DType::f32);
             const Tensor dgate = b.ctx().empty(input.shape(), DType::f32);
             b.ctx().launch(kCompressKvBackward, DType::f32,
                            CompressKvBackwardArgs{.dkv = dkv,
                                                   .dgate = dgate,
                                                   .dposition_bias = b.target(2),
                                                   .dentries = b.gradient(0),
                                                   .kv = input,
                                                   .gate = biased,
                                                   .ratio = ratio,
                                                   .overlap = overlap,
                                                   .sequences = own});
             b.accumulate(0, dkv);
             b.accumulate(1, dgate);
           },
       .replay = [overlap, own](ExecContext& c, const TensorList& in) -> TensorList {
         return {run(c, in[0], copy(c, in[1]), in[2], overlap, own)};
       }});
  return entries;
}

}  // namespace hadal::ops
