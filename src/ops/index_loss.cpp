#include "ops/index_loss.h"

#include <fmt/format.h>

#include "kernels/index_loss.h"

namespace hadal::ops {

namespace {

void check(const IndexedAttention& a) {
  const std::int64_t n_tokens = a.queries.dim(0);
  const std::int64_t n_heads = a.index_queries.dim(1), width = a.index_queries.dim(2);
  expect_shape(a.index_queries, {n_tokens, n_heads, width}, "index_loss: index_queries");
  expect_shape(a.index_weights, {n_tokens, n_heads}, "index_loss: index_weights");
  expect_shape(a.index_keys, {a.index_keys.dim(0), width}, "index_loss: index_keys");
  expect_shape(a.log_sum_exp, {n_tokens, a.queries.dim(1)}, "index_loss: log_sum_exp");
  HADAL_CHECK(a.options.ratio > 0);
  for (const AttentionSequence& s : a.sequences) {
    if (s.start != 0) {
      throw Error(
          ErrorCode::unsupported,
          fmt::format("index_loss: a sequence at position {} has keys from before this step; "
                      "training sequences run in one piece from position 0",
                      s.start));
    }
    HADAL_CHECK(s.added.first == 0 && s.added.count == (s.end - s.begin) / a.options.ratio);
    HADAL_CHECK(s.added.row + s.added.count <= a.index_keys.dim(0));
  }
}

}  // namespace

IndexLossRows index_loss_rows(ExecContext& ctx, const IndexedAttention& a,
                              const IndexLossOptions& options) {
  check(a);
  const std::int64_t n_tokens = a.queries.dim(0);
  const Tensor loss = ctx.empty({n_tokens}, DType::f32), mass = ctx.empty({n_tokens}, DType::f32);
  const Tensor recall = options.recall_topk > 0 ? ctx.empty({n_tokens}, DType::f32) : Tensor();
  const Tensor best_recall = recall ? ctx.empty({n_tokens}, DType::f32) : Tensor();
  Tape* tape = ctx.tape_for(a.index_queries, a.index_weights, a.index_keys);
  const auto gradient_of = [&](const Tensor& x) {
    return tape != nullptr ? ctx.empty(x.shape(), DType::f32) : Tensor();
  };
  const Tensor dqueries = gradient_of(a.index_queries), dweights = gradient_of(a.index_weights),
               dkeys = gradient_of(a.index_keys);
  ctx.launch(kIndexLoss, a.index_queries.dtype(),
             IndexLossArgs{.loss = loss,
                           .mass = mass,
                           .recall = recall,
                           .best_recall = best_recall,
                           .dindex_queries = dqueries,
                           .dindex_weights = dweights,
                           .dindex_keys = dkeys,
                           .index_queries = a.index_queries,
                           .index_weights = a.index_weights,
                           .index_keys = a.index_keys,
                           .queries = a.queries,
                           .log_sum_exp = a.log_sum_exp,
                           .selected = a.selected,
                           .ratio = a.options.ratio,
                           .recall_topk = options.recall_topk,
                           .softmax_scale = a.options.softmax_scale,
                           .scale = options.scale,
                           .sequences = a.sequences});
  if (tape != nullptr) {
    tape->record({.name = "index_loss",
                  .inputs = {a.index_queries, a.index_weights, a.index_keys},
                  .outputs = {},
                  .backward = [dqueries, dweights, dkeys](Backward& b) {
                    b.accumulate(0, dqueries);
                    b.accumulate(1, dweights);
                    b.accumulate(2, dkeys);
                  }});
  }
  return {loss, mass, recall, best_recall};
}

IndexLoss sum_rows(const IndexLossRows& rows) {
  IndexLoss out;
  for (std::int64_t t = 0; t < rows.loss.numel(); ++t) {
    // A row that is not a number counts, so that it is seen.
    if (!(rows.mass.data<const float>()[t] < 1e-20f)) {
      out.n_rows += 1;
      out.sum += static_cast<double>(rows.loss.data<const float>()[t]);
    }
    if (rows.recall && rows.recall.data<const float>()[t] >= 0.0f) {
      out.n_recall_rows += 1;
      out.recall_sum += static_cast<double>(rows.recall.data<const float>()[t]);
      out.best_recall_sum += static_cast<double>(rows.best_recall.data<const float>()[t]);
    }
  }
  return out;
}

IndexLoss index_loss(ExecContext& ctx, const IndexedAttention& a, const IndexLossOptions& options) {
  const IndexLossRows rows = index_loss_rows(ctx, a, options);
  const std::vector<Tensor> host =
      ctx.to_host(std::vector<Tensor>{rows.loss, rows.mass, rows.recall, rows.best_recall});
  return sum_rows({host[0], host[1], host[2], host[3]});
}

}  // namespace hadal::ops
