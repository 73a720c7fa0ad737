#pragma once

#include <vector>

#include "ops/sparse_attention.h"

namespace hadal::ops {

// Both sides of an indexer's lesson: what it scores with, and the attention that its scores should
// predict. Only training makes one; the histories that it borrows outlive the step.
struct IndexedAttention {
  // The student: all differentiable, cut off from the trunk.
  Tensor index_queries;  // [n_tokens, index_n_heads, index_head_dim]  rotated, as scored
  Tensor index_weights;  // [n_tokens, index_n_heads]                  scale factors folded in
  Tensor index_keys;     // [n_entries, index_head_dim]  this step's, sequence after sequence
  // The teacher: no gradient.
  Tensor queries;        // [n_tokens, n_heads, head_dim]
  Tensor log_sum_exp;    // [n_tokens, n_heads] f32, of window, entries and sink together
  Tensor selected;       // [n_tokens, topk] i32; empty: all visible entries
  AttentionOptions options;
  std::vector<AttentionSequence> sequences;
};

}  // namespace hadal::ops
