#pragma once

#include <vector>

#include "ops/sparse_attention.h"

namespace hadal::ops {

// Both sides of an indexer's lesson: what it scores with, and the attention that its scores should
// predict. Only training makes one; it borrows histories, which stay for the step.
struct IndexedAttention {
  // The student: all differentiable, cut off from the trunk.
  Tensor
      index_queries;  // [n_tokens, index_n_heads, index_head_dim]  rotated and rounded, as scored
  Tensor index_weights;  // [n_tokens, index_n_heads]                  scale factors folded in
  Tensor index_keys;     // [n_entries, index_head_dim]  this step's, found by sequences[i].added,
                         // with the values that the cache stores
  // The teacher: no gradient.
  Tensor queries;      // [n_tokens, n_heads, head_dim]
  Tensor log_sum_exp;  // [n_tokens, n_heads] f32, of window, entries and sink together
  Tensor selected;     // [n_tokens, topk] i32; empty: all visible entries
  AttentionOptions options;
  std::vector<AttentionSequence> sequences;
};

struct IndexLossOptions {
  // Of the gradient: the coefficient over the number of rows of the global batch.
  float scale = 1;
  // Entries that a sparse step would keep; with it the recall is measured, which with `selected`
  // costs the dense scores of all visible entries. 0: not measured.
  std::int64_t recall_topk = 0;
};

struct IndexLoss {
  double sum = 0;           // over rows, of KL(attention || softmax(scores)); not scaled
  std::int64_t n_rows = 0;  // rows that attend to some entry
  // Share of a dense attention's mass on entries that the kept ones catch, summed over the rows
  // that leave some out: the entries in `selected`, else the recall_topk best.
  double recall_sum = 0;
  double best_recall_sum = 0;  // of the largest shares that as many entries could catch
  std::int64_t n_recall_rows = 0;
};

// The indexer's loss (see kernels/index_loss.h). A loss: with a tape, backward adds scale times the
// gradient of `sum` to index_queries, index_weights and index_keys; they are computed at once.
// Throws Error unsupported when a sequence does not start at position 0.
IndexLoss index_loss(ExecContext& ctx, const IndexedAttention& attention,
                     const IndexLossOptions& options);

// The same in two parts: what the kernel says of every row, and, of what to_host() brought, sums.
struct IndexLossRows {
  Tensor loss, mass, recall, best_recall;  // [n_tokens] f32 each; recalls empty: not measured
};
IndexLossRows index_loss_rows(ExecContext& ctx, const IndexedAttention& attention,
                              const IndexLossOptions& options);
[[nodiscard]] IndexLoss sum_rows(const IndexLossRows& on_host);

// Rows of a sequence of n_tokens that see an entry: what the global batch's mean divides by.
[[nodiscard]] constexpr std::int64_t rows_with_entries(std::int64_t n_tokens, std::int64_t ratio) {
  return n_tokens < ratio ? 0 : n_tokens - ratio + 1;
}

}  // namespace hadal::ops
