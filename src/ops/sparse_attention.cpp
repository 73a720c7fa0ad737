#include "ops/sparse_attention.h"

namespace hadal::ops {

namespace {

// Everything but q and the sinks, kept for backward: tensors share, rows of sequences are borrowed.
struct Lists {
  StepRows new_rows;
  Tensor selected;
  AttentionOptions options;
  std::vector<AttentionSequence> sequences;
  Shape entries;  // of what this step's entries were rounded from
};

Tensor run(ExecContext& ctx, const Tensor& q, const StepRows& new_rows, const Tensor& sinks,
           const Tensor& selected, const AttentionOptions& options,
           std::span<const AttentionSequence> sequences, const Tensor& log_sum_exp) {
  Tensor o = ctx.empty(q.shape(), q.dtype());
  ctx.launch(kSparseAttention, q.dtype(),
             SparseAttentionArgs{.o = o,
                                 .q = q,
                                 .new_rows = new_rows.view(),
                                 .sinks = sinks,
                                 .selected = selected,
                                 .window = options.window,
                                 .ratio = options.ratio,
                                 .softmax_scale = options.softmax_scale,
                                 .sequences = sequences,
                                 .log_sum_exp = log_sum_exp});
  return o;
}

void run_backward(Backward& b, const Tensor& q, const Tensor& o, const Tensor& log_sum_exp,
                  const Tensor& sinks, const Lists& lists) {
  const auto wanted = [&](std::size_t input, const Shape& shape) {
    return b.wants(input) ? b.ctx().empty(shape, DType::f32) : Tensor();
  };
  const Tensor dq = wanted(0, q.shape());
  const Tensor drows = wanted(1, {q.dim(0), q.dim(2)});
  const Tensor dentries = wanted(2, lists.entries);
  b.ctx().launch(kSparseAttentionBackward, q.dtype(),
                 SparseAttentionBackwardArgs{.dq = dq,
                                             .drows = drows,
                                             .dentries = dentries,
                                             .dsinks = b.target(3),
                                             .d_o = b.gradient(0),
                                             .o = o,
                                             .log_sum_exp = log_sum_exp,
                                             .q = q,
                                             .new_rows = lists.new_rows.view(),
                                             .sinks = sinks,
                                             .selected = lists.selected,
                                             .window = lists.options.window,
                                             .ratio = lists.options.ratio,
                                             .softmax_scale = lists.options.softmax_scale,
                                             .sequences = lists.sequences});
  if (dq) b.accumulate(0, dq);
  if (drows) b.accumulate(1, drows);
  if (dentries) b.accumulate(2, dentries);
}

}  // namespace

Tensor sparse_attention(ExecContext& ctx, const Tensor& q, const StepRows& new_rows,
                        const Tensor& sinks, const Tensor& selected,
                        const AttentionOptions& options,
                        std::span<const AttentionSequence> sequences,
                        const AttentionTraining& training) {
  expect_shape(sinks, {q.dim(1)}, "sparse_attention: sinks");
  HADAL_CHECK(new_rows.format.width == q.dim(2));
  for (const AttentionSequence& s : sequences) HADAL_CHECK(s.start == 0 || s.ring_rows > 0);
  Tape* tape = ctx.tape_for(q, new_rows.source, training.entries, sinks);
  Tensor log_sum_exp;
  if (tape != nullptr || training.log_sum_exp != nullptr) {
    log_sum_exp = ctx.empty({q.dim(0), q.dim(1)}, DType::f32);
  }
  Tensor o = run(ctx, q, new_rows, sinks, selected, options, sequences, log_sum_exp);
  if (training.log_sum_exp != nullptr) *training.log_sum_exp = log_sum_exp;
  if (tape != nullptr) {
    o = tape->variable(o);
    Lists lists{.new_rows = new_rows,
                .selected = selected,
                .options = options,
                .sequences = {sequences.begin(), sequences.end()},
                .entries = training.entries.shape()};
    lists.new_rows.source = {};
    // An input that is not there is a constant; the sinks stand in for it.
    const Tensor none = sinks.detached();
    tape->record(
        {.name = "sparse_attention",
         .inputs = {q, new_rows.source ? new_rows.source : none,
                    training.entries ? training.entries : none, sinks},
         .outputs = {o},
         .backward =
             [q = tape->save(q), o = tape->save(o), log_sum_exp, sinks = sinks.detached(), lists](
                 Backward& b) { run_backward(b, b.get(q), b.get(o), log_sum_exp, sinks, lists); },
         .replay = [lists](ExecContext& c, const TensorList& in) -> TensorList {
           return {run(c, in[0], lists.new_rows, in[3], lists.selected, lists.options,
                       lists.sequences, {})};
         }});
  }
  return o;
}

}  // namespace hadal::ops
