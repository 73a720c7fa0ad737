#include "model/indexer.h"

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/indexer.h"
#include "ops/kv_rows.h"
#include "ops/linear.h"

namespace hadal::model {

Indexer::Indexer(const Config& config, const LayerSpec& layer, const BoundWeights& weights,
                 const std::string& prefix, const ops::RopeFrequencies& rope)
    : compressor_(config, layer, weights, prefix + ".compressor", rope),
      q_proj_(weights.linear(prefix + ".wq_b.weight")),
      weights_proj_(weights.linear(prefix + ".weights_proj.weight")),
      n_heads_(config.index_n_heads),
      width_(config.index_head_dim),
      topk_(config.index_topk),
      ratio_(layer.compress_ratio) {}

Indexer::Output Indexer::forward(ExecContext& step_ctx, const Step& step, const Tensor& x,
                                 const Tensor& q_latent, std::span<const LayerHistory> histories,
                                 const Tensor& rope_table, Wanted wanted) const {
  // A selection has no gradient: without a loss there is nothing to remember.
  ExecContext ctx = wanted.scored ? step_ctx : step_ctx.without_tape();
  const bool fp4 = step.kv.index_format().kind == KvRowKind::fp4;
  std::vector<CompressorTail> tails;
  for (const LayerHistory& history : histories) tails.push_back(history.index_tail);
  Compressor::Output keys = compressor_.forward(ctx, step, x, tails);
  if (fp4) keys.entries = ops::hadamard(ctx, std::move(keys.entries));

  std::vector<IndexSequence> sequences;
  std::vector<StoreRange> stores;
  bool everything_visible = true;
  for (std::size_t i = 0; i < histories.size(); ++i) {
    const TokenBatch::Sequence& s = step.batch.sequences[i];
    const auto [row, count, first] = keys.by_sequence[i].from(histories[i].frozen_entries);
    stores.push_back({row, row + count, histories[i].index_keys, first});
    sequences.push_back({s.begin, s.end, s.start, histories[i].index_keys});
    everything_visible &= (s.start + s.end - s.begin) / ratio_ <= topk_;
  }
  ops::store_rows(ctx, keys.entries, stores);
  const bool selects = wanted.selects && !everything_visible;
  if (!selects && !wanted.scored) return {};

  Tensor q = ops::linear(ctx, q_latent, q_proj_).reshape({x.dim(0), n_heads_, width_});
  q = ops::rope(ctx, std::move(q), rope_table);
  if (fp4) q = ops::fake_quantize_fp4(ctx, ops::hadamard(ctx, std::move(q)));
  // Both scale factors ride on the head weights.
  const auto factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(width_)) /
                                         std::sqrt(static_cast<double>(n_heads_)));
  const Tensor weights = ops::scale(ctx, ops::linear(ctx, x, weights_proj_), factor);
  Output out;
  if (selects) out.selected = ops::index_topk(ctx, q, weights, topk_, ratio_, sequences);
  if (!wanted.scored) return out;
  out.queries = q;
  out.weights = weights;
  // The values that were stored: rounding is a function of the row.
  out.keys = fp4 ? ops::fake_quantize_fp4(ctx, std::move(keys.entries)) : keys.entries;
  return out;
}

}  // namespace hadal::model
