#include "ops/hyper_connection.h"

namespace hadal::ops {

HcPre hc_pre(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
             const HcOptions& options) {
  const std::int64_t n_tokens = streams.dim(0), n = streams.dim(1), hidden = streams.dim(2);
  expect_shape(weights.fn.data, {(2 + n) * n, n * hidden}, "hc_pre: fn");
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
                       .norm_eps = options.norm_eps});
  return out;
}

Tensor hc_post(ExecContext& ctx, const Tensor& a, const Tensor& streams, const Tensor& post,
               const Tensor& comb) {
  expect_shape(a, {streams.dim(0), streams.dim(2)}, "hc_post: a");
  Tensor y = ctx.empty(streams.shape(), streams.dtype());
  ctx.launch(kHcPost, streams.dtype(),
             HcPostArgs{.y = y, .a = a, .streams = streams, .post = post, .comb = comb});
  return y;
}

Tensor hc_head(ExecContext& ctx, const Tensor& streams, const HcWeights& weights,
               const HcOptions& options) {
  Tensor x = ctx.empty({streams.dim(0), streams.dim(2)}, streams.dtype());
  ctx.launch(kHcHead, streams.dtype(),
             HcHeadArgs{.x = x,
                        .streams = streams,
                        .weights = &weights,
                        .hc_eps = options.hc_eps,
                        .norm_eps = options.norm_eps});
  return x;
}

}  // namespace hadal::ops
