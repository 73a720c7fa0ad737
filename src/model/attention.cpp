#include "model/attention.h"

#include <cmath>

#include "model/weights.h"
#include "ops/kv_rows.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/sparse_attention.h"

namespace hadal::model {

Attention::Attention(const Config& config, const LayerSpec& layer, std::int64_t layer_index,
                     const BoundWeights& weights, const std::string& prefix,
                     const ops::RopeFrequencies& rope, std::size_t rope_index)
    : layer_index_(layer_index),
      rope_index_(rope_index),
      n_heads_(config.num_attention_heads),
      head_dim_(config.head_dim),
      window_(config.sliding_window),
      o_groups_(config.o_groups),
      norm_eps_(config.rms_norm_eps),
      q_a_proj_(weights.linear(prefix + ".wq_a.weight")),
      q_a_norm_(as_f32(weights.plain(prefix + ".q_norm.weight"))),
      q_b_proj_(weights.linear(prefix + ".wq_b.weight")),
      kv_proj_(weights.linear(prefix + ".wkv.weight")),
      kv_norm_(as_f32(weights.plain(prefix + ".kv_norm.weight"))),
      sinks_(weights.plain(prefix + ".attn_sink")),
      o_a_proj_(weights.linear(prefix + ".wo_a.weight")),
      o_b_proj_(weights.linear(prefix + ".wo_b.weight")) {
  if (layer.has_compressor()) {
    compressor_.emplace(config, layer, weights, prefix + ".compressor", rope);
  }
  if (layer.has_indexer()) indexer_.emplace(config, layer, weights, prefix + ".indexer", rope);
}

Tensor Attention::queries(ExecContext& ctx, const Tensor& q_latent, const Tensor& rope) const {
  Tensor q = ops::linear(ctx, q_latent, q_b_proj_);
  q = ops::head_norm(ctx, q.reshape({q.dim(0), n_heads_, head_dim_}), norm_eps_);
  // Norms and rotations are cheap to repeat; products are not.
  return recompute(ctx, ops::rope(ctx, std::move(q), rope));
}

Tensor Attention::output(ExecContext& ctx, Tensor o, const Tensor& rope) const {
  // Values were rotated with their keys; turning by the query's position leaves relative angles.
  const Tensor turned = recompute(ctx, ops::rope(ctx, std::move(o), rope, RopeDirection::inverse));
  const Tensor flat = turned.reshape({turned.dim(0), n_heads_ * head_dim_});
  return ops::linear(ctx, ops::grouped_linear(ctx, flat, o_a_proj_, o_groups_), o_b_proj_);
}

Tensor Attention::forward(ExecContext& ctx, const Step& step, const Tensor& x) const {
  const Tensor& rope = step.rope_tables[rope_index_];
  std::vector<LayerHistory> histories;
  histories.reserve(step.batch.sequences.size());
  for (const TokenBatch::Sequence& s : step.batch.sequences) {
    histories.push_back(step.kv.history(layer_index_, s.slot, s.start + s.end - s.begin));
  }

  const Tensor q_latent =
      recompute(ctx, ops::rms_norm(ctx, ops::linear(ctx, x, q_a_proj_), q_a_norm_, norm_eps_));
  const Tensor q = queries(ctx, q_latent, rope);  // [n_tokens, n_heads, head_dim]

  const Tensor kv = ops::rms_norm(ctx, ops::linear(ctx, x, kv_proj_), kv_norm_, norm_eps_);
  const std::int64_t n_tokens = x.dim(0);
  const Tensor turned = ops::rope(ctx, kv.reshape({n_tokens, 1, head_dim_}), rope);
  const ops::StepRows new_rows =
      ops::store_step_rows(ctx, turned.reshape({n_tokens, head_dim_}), step.kv.entry_format());

  const bool selects = step.csa_selection == CsaSelection::indexer;
  const bool scored =
      indexer_ && step.observer != nullptr && step.observer->wants_index_scores(layer_index_);
  Indexer::Output index;
  if (indexer_ && (selects || scored)) {
    // The trunk does not learn from what the indexer makes of it.
    index = indexer_->forward(ctx, step, x.detached(), q_latent.detached(), histories, rope,
                              {.selects = selects, .scored = scored});
  }

  Tensor entries;
  std::vector<StepEntries> added(histories.size());
  if (compressor_) {
    std::vector<CompressorTail> tails;
    tails.reserve(histories.size());
    for (const LayerHistory& history : histories) tails.push_back(history.tail);
    const Compressor::Output output = compressor_->forward(ctx, step, x, tails);
    std::vector<StoreRange> stores;
    for (std::size_t i = 0; i < histories.size(); ++i) {
      const auto [row, count, first] = output.by_sequence[i].from(histories[i].frozen_entries);
      stores.push_back({row, row + count, histories[i].entries, first});
      added[i] = output.by_sequence[i].rows();
    }
    ops::store_rows(ctx, output.entries, stores);
    entries = output.entries;
  }

  std::vector<AttentionSequence> sequences;
  for (std::size_t i = 0; i < histories.size(); ++i) {
    const TokenBatch::Sequence& s = step.batch.sequences[i];
    sequences.push_back({s.begin, s.end, s.start, histories[i].window, histories[i].ring_rows,
                         histories[i].entries, added[i]});
  }
  const ops::AttentionOptions options{
      .window = window_,
      .ratio = compressor_ ? compressor_->ratio() : 0,
      .softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_)))};
  Tensor log_sum_exp;
  Tensor o =
      ops::sparse_attention(ctx, q, new_rows, sinks_, index.selected, options, sequences,
                            {.entries = entries, .log_sum_exp = scored ? &log_sum_exp : nullptr});
  if (scored) {
    step.observer->indexed(ctx, layer_index_,
                           {.index_queries = index.queries,
                            .index_weights = index.weights,
                            .index_keys = index.keys,
                            .queries = q.detached(),
                            .log_sum_exp = log_sum_exp,
                            .selected = index.selected,
                            .options = options,
                            .sequences = sequences});
  }

  // Only now: the step's queries still needed the rows that these replace.
  std::vector<CopyRange> copies;
  for (const AttentionSequence& s : sequences) {
    copies.push_back({s.begin, s.end, s.window, s.start, s.ring_rows});
  }
  ops::copy_to_rings(ctx, new_rows, std::move(copies));
  return output(ctx, std::move(o), rope);
}

}  // namespace hadal::model
