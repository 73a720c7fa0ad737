#pragma once

#include <span>

#include "kernels/kv_rows.h"

namespace hadal {

struct AttentionSequence {
  std::int64_t begin = 0, end = 0;  // rows of q and new_rows
  std::int64_t start = 0;           // position of row `begin`
  PagedRows window;                 // positions before `start`; position p in slot p % ring_rows
  std::int64_t ring_rows = 0;
  PagedRows entries;  // compressed rows; unused when ratio is 0
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
  TensorView selected;  // [n_tokens, topk] i32, -1 at the end; empty: all visible entries
  std::int64_t window = 0;
  std::int64_t ratio = 0;  // 0: no compressed entries
  float softmax_scale = 0;
  std::span<const AttentionSequence> sequences;
};
inline constexpr KernelName<SparseAttentionArgs> kSparseAttention{"sparse_attention"};

}  // namespace hadal
