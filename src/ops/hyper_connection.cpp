#include "ops/hyper_connection.h"

namespace hadal::ops {

namespace {

// The mixes of a gate that backward will ask for; empty without a tape.
struct SavedGate {
  Tensor mixes, rms;

  static SavedGate make(ExecContext& ctx, const Tape* tape, std::int64_t n_tokens,
                        std::int64_t n_mixes) {
    if (tape == nullptr) return {};
    return {ctx.empty({n_tokens, n_mixes}, DType::f32), ctx.empty({n_tokens}, DType::f32)};
  }
  [[nodiscard]] HcSaved view() const { return {mixes, rms}; }
};

TensorList gate_inputs(const Tensor& streams, const HcWeights& weights) {
  return {streams, weights.fn.data, weights.scale, weights.base};
}

// hc_post has left its gradient of the streams by now: this one is added on top, which spares
// passes over the largest tensors there are.
void gate_backward(Backward& b, const Saved& saved_streams, const SavedGate& saved,
                   const HcWeights& weights, const HcOptions& options) {
  const Tensor streams = b.get(saved_streams);
  const Tensor dstreams = b.target(0), dfn = b.target(1), dscale = b.target(2), dbase = b.target(3);
  const bool all_gates = weights.scale.numel() == 3;
  const Tensor dx = b.gradient(0);
  const Tensor dpost = all_gates ? b.gradient(1) : Tensor();
  const Tensor dcomb = all_gates ? b.gradient(2) : Tensor();
  b.ctx().launch(kHcGateBackward, streams.dtype(),
                 HcGateBackwardArgs{.dstreams = dstreams,
                                    .dfn = dfn,
                                    .dscale = dscale,
                                    .dbase = dbase,
                                    .dx = dx,
                                    .dpost = dpost,
                                    .dcomb = dcomb,
                                    .streams = streams,
                                    .saved = saved.view(),
                                    .weights = &weights,
                                    .sinkhorn_iters = options.sinkhorn_iters,
                                    .hc_eps = options.hc_eps});
}

}  // namespace

HcPre hc_pre(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
             const HcOptions& options) {
  const std::int64_t n_tokens = streams.dim(0), n = streams.dim(1), hidden = streams.dim(2);
  expect_shape(weights.fn.data, {(2 + n) * n, n * hidden}, "hc_pre: fn");
  Tape* tape = ctx.tape_for(streams, weights.fn.data, weights.scale, weights.base);
  const SavedGate saved = SavedGate::make(ctx, tape, n_tokens, (2 + n) * n);
  HcPre out{ctx.empty({n_tokens, hidden}, streams.dtype()), ctx.empty({n_tokens, n}, DType::f32),
            ctx.empty({n_tokens, n, n}, DType::f32)};
  ctx.launch(kHcPre, streams.dtype(),
             HcPreArgs{.x = out.x,
                       .post = out.post,
                       .comb = out.comb,
                       .streams = streams,
                       .weights = &weights,
                       .sinkhorn_iters = options.sinkhorn_iters,
                       .hc_eps = options.hc_eps,
                       .norm_eps = options.norm_eps,
                       .saved = saved.view()});
  if (tape != nullptr) {
    out = {tape->variable(out.x), tape->variable(out.post), tape->variable(out.comb)};
    tape->record(
        {.name = "hc_pre",
         .inputs = gate_inputs(streams, weights),
         .outputs = {out.x, out.post, out.comb},
         .backward = [streams = tape->save(streams), saved, weights,
                      options](Backward& b) { gate_backward(b, streams, saved, weights, options); },
         .replay = [weights, options](ExecContext& c, const TensorList& in) -> TensorList {
           const auto [x, post, comb] = hc_pre(c, in[0], weights, options);
           return {x, post, comb};
         }});
  }
  return out;
}

Tensor hc_post(ExecContext& ctx, const Tensor& a, const Tensor& streams, const Tensor& post,
               const Tensor& comb) {
  expect_shape(a, {streams.dim(0), streams.dim(2)}, "hc_post: a");
  Tensor y = ctx.empty(streams.shape(), streams.dtype());
  ctx.launch(kHcPost, streams.dtype(),
             HcPostArgs{.y = y, .a = a, .streams = streams, .post = post, .comb = comb});
  if (Tape* tape = ctx.tape_for(a, streams, post, comb)) {
    y = tape->variable(y);
    tape->record({.name = "hc_post",
                  .inputs = {a, streams, post, comb},
                  .outputs = {y},
                  .backward =
                      [a = tape->save(a), streams = tape->save(streams), post = tape->save(post),
                       comb = tape->save(comb)](Backward& b) {
                        const Tensor inputs[] = {b.get(a), b.get(streams), b.get(post),
                                                 b.get(comb)};
                        Tensor gradients[4];
                        for (std::size_t i = 0; i < 4; ++i) {
                          if (b.wants(i))
                            gradients[i] = b.ctx().empty(inputs[i].shape(), DType::f32);
                        }
                        const Tensor dy = b.gradient(0);
                        b.ctx().launch(kHcPostBackward, inputs[0].dtype(),
                                       HcPostBackwardArgs{.da = gradients[0],
                                                          .dstreams = gradients[1],
                                                          .dpost = gradients[2],
                                                          .dcomb = gradients[3],
                                                          .dy = dy,
                                                          .a = inputs[0],
                                                          .streams = inputs[1],
                                                          .post = inputs[2],
                                                          .comb = inputs[3]});
                        for (std::size_t i = 0; i < 4; ++i) {
                          if (gradients[i]) b.accumulate(i, std::move(gradients[i]));
                        }
                      },
                  .replay = [](ExecContext& c, const TensorList& in) -> TensorList {
                    return {hc_post(c, in[0], in[1], in[2], in[3])};
                  }});
  }
  return y;
}

Tensor hc_head(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
               const HcOptions& options) {
  const std::int64_t n_tokens = streams.dim(0), n = streams.dim(1), hidden = streams.dim(2);
  expect_shape(weights.fn.data, {n, n * hidden}, "hc_head: fn");
  Tape* tape = ctx.tape_for(streams, weights.fn.data, weights.scale, weights.base);
  const SavedGate saved = SavedGate::make(ctx, tape, n_tokens, n);
  Tensor x = ctx.empty({n_tokens, hidden}, streams.dtype());
  ctx.launch(kHcHead, streams.dtype(),
             HcHeadArgs{.x = x,
                        .streams = streams,
                        .weights = &weights,
                        .hc_eps = options.hc_eps,
                        .norm_eps = options.norm_eps,
                        .saved = saved.view()});
  if (tape != nullptr) {
    x = tape->variable(x);
    tape->record(
        {.name = "hc_head",
         .inputs = gate_inputs(streams, weights),
         .outputs = {x},
         .backward = [streams = tape->save(streams), saved, weights,
                      options](Backward& b) { gate_backward(b, streams, saved, weights, options); },
         .replay = [weights, options](ExecContext& c, const TensorList& in) -> TensorList {
           return {hc_head(c, in[0], weights, options)};
         }});
  }
  return x;
}

}  // namespace hadal::ops
