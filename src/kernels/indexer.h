#pragma once

#include <span>

#include "kernels/kv_rows.h"

namespace hadal {

// x = H x / sqrt(width) for each row: natural-order Walsh-Hadamard, f32 butterflies, one rounding.
// Source: architecture.md §3.6.1.
struct HadamardArgs {
  TensorView x;  // [n_rows, width], width a power of two; in place
};
inline constexpr KernelName<HadamardArgs> kHadamard{"hadamard"};

// Rounds every block of 32 columns to E2M1 with a power-of-two scale and back, in place.
struct FakeQuantizeFp4Args {
  TensorView x;  // [n_rows, width]
};
inline constexpr KernelName<FakeQuantizeFp4Args> kFakeQuantizeFp4{"fake_quantize_fp4"};

struct IndexSequence {
  std::int64_t begin = 0, end = 0;  // rows of q
  std::int64_t start = 0;           // position of row `begin`
  PagedRows keys;
};

// Scores every visible entry, I[t,s] = sum_h relu(q_h . k_s) * w_h, and keeps the topk best.
// Ties go to the lower entry; the kept ones are listed ascending and padded with -1. Entry s is
// visible to position t when s < (t + 1) / ratio. bf16 rounds dot products, terms and the sum as
// the reference does.  Source: DeepSeek-V4 §2.3.1 eq. 13-16; architecture.md §3.6.
struct IndexTopkArgs {
  TensorView selected;  // [n_tokens, topk]              out, i32
  TensorView q;         // [n_tokens, n_heads, width]    bf16 | f32
  TensorView weights;   // [n_tokens, n_heads]           dtype of q, scale factors folded in
  std::int64_t ratio = 0;
  std::span<const IndexSequence> sequences;
};
inline constexpr KernelName<IndexTopkArgs> kIndexTopk{"index_topk"};

}  // namespace hadal
