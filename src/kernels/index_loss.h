#pragma once

#include "kernels/sparse_attention.h"

namespace hadal {

// How far an indexer's scores are from the attention that they should predict, and the gradient.
// For a query t and the entries s that it attends to (its list, else all visible ones):
//   teacher  A = sum over heads of exp(softmax_scale q.e_s - log_sum_exp),  p = A / sum A
//   student  I = sum over heads of w relu(q_I.k_s),                        pi = softmax(I)
//   loss = sum p (log p - log pi),   dI = scale (pi - p)
// Rows that attend to no entry, or whose sum A is below 1e-20, have loss 0 and gradient 0. Every
// sequence starts at position 0. A block of queries at a time: no tensor of tokens times entries.
// Source: DeepSeek-V4 §2.3.1; training.md §2.4, §4.5.
struct IndexLossArgs {
  TensorView loss;    // [n_tokens] f32  out
  TensorView mass;    // [n_tokens] f32  out: sum A, of at most n_heads
  TensorView recall;  // [n_tokens] f32  out: the share of the mass over all visible entries that is
                      // on the `recall_topk` best of I, or on the list; -1 where that is all of
                      // them. Empty: not wanted
  TensorView best_recall;     // [n_tokens] f32  out, with recall: the largest share that as many
                              // entries could have; -1 where recall is
  TensorView dindex_queries;  // f32, of the shapes of what they are gradients of; out. All empty:
  TensorView dindex_weights;  // none wanted
  TensorView dindex_keys;
  TensorView index_queries;  // [n_tokens, index_n_heads, index_head_dim]  bf16 | f32
  TensorView index_weights;  // [n_tokens, index_n_heads]                  like queries
  TensorView index_keys;     // [n_entries, index_head_dim]                like queries
  TensorView queries;        // [n_tokens, n_heads, head_dim]              like queries
  TensorView log_sum_exp;    // [n_tokens, n_heads] f32: what the attention's softmax had
  TensorView selected;       // [n_tokens, topk] i32, -1 at the end; empty: all visible entries
  std::int64_t ratio = 0;
  std::int64_t recall_topk = 0;
  float softmax_scale = 0;
  float scale = 1;
  std::span<const AttentionSequence> sequences;  // entries, and by `added` rows of index_keys
};
inline constexpr KernelName<IndexLossArgs> kIndexLoss{"index_loss"};

}  // namespace hadal
