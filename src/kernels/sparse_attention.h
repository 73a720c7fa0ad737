#pragma once

#include <span>

#include "kernels/kv_rows.h"

namespace hadal {

// The entries of one sequence that this step made: numbers [first, first + count), which are rows
// [row, row + count) of the tensor that holds those of all sequences.
struct StepEntries {
  std::int64_t row = 0, count = 0, first = 0;
};

struct AttentionSequence {
  std::int64_t begin = 0, end = 0;  // rows of q and new_rows
  std::int64_t start = 0;           // position of row `begin`
  PagedRows window = {};            // positions before `start`; position p in slot p % ring_rows
  std::int64_t ring_rows = 0;
  PagedRows entries = {};  // compressed rows; unused when ratio is 0
  StepEntries added = {};  // the newest of them; only gradients ask
};

// Core attention with one key-value row for all heads. Position t attends to the last `window`
// positions (itself included), oldest first, then to compressed entries, ascending: those listed
// in `selected`, or all visible ones (s < (t + 1) / ratio) when there is no list. The sink is a
// term of the denominator only. bf16 rounds probabilities, taken against the maximum of the whole
// list, before they meet the values.  Source: DeepSeek-V4 §2.3.3 eq. 27; architecture.md §3.4.2.
struct SparseAttentionArgs {
  TensorView o;         // [n_tokens, n_heads, head_dim]  out
  TensorView q;         // [n_tokens, n_heads, head_dim]  bf16 | f32
  PagedRows new_rows;   // one row a token, in the window's format
  TensorView sinks;     // [n_heads] f32
  TensorView selected;  // [n_tokens, topk] i32, ascending, -1 at the end; empty: all visible
  std::int64_t window = 0;
  std::int64_t ratio = 0;  // 0: no compressed entries
  float softmax_scale = 0;
  std::span<const AttentionSequence> sequences;
  TensorView log_sum_exp;  // [n_tokens, n_heads] f32  out; empty: nobody asks
};
inline constexpr KernelName<SparseAttentionArgs> kSparseAttention{"sparse_attention"};

// The gradients of q, of this step's rows and entries (as keys and as values, in one buffer) and of
// the sinks. With p = exp(z - log_sum_exp), k a key of the list and delta = do . o:
//   dz = p (do . k - delta),  dq = scale * sum dz k,  dk = sum (scale * dz q + p do),
//   dsink = - sum exp(sink - log_sum_exp) delta
// Rows and entries from before this step are constants; they must still be what forward read. All
// roundings are passed straight through.  Source: training.md §4.3.
struct SparseAttentionBackwardArgs {
  TensorView dq;           // [n_tokens, n_heads, head_dim] f32  out; empty: not wanted
  TensorView drows;        // [n_tokens, head_dim] f32           out; empty: not wanted
  TensorView dentries;     // [n_entries, head_dim] f32          out; empty: not wanted
  TensorView dsinks;       // [n_heads] f32                      added to; empty: not wanted
  TensorView d_o;          // [n_tokens, n_heads, head_dim] f32
  TensorView o;            // forward's result
  TensorView log_sum_exp;  // [n_tokens, n_heads] f32
  TensorView q;            // as in forward, like all that follows
  PagedRows new_rows;
  TensorView sinks;
  TensorView selected;
  std::int64_t window = 0;
  std::int64_t ratio = 0;
  float softmax_scale = 0;
  std::span<const AttentionSequence> sequences;
};
inline constexpr KernelName<SparseAttentionBackwardArgs> kSparseAttentionBackward{
    "sparse_attention_backward"};

}  // namespace hadal
