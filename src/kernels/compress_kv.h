#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

// A compressor's memory of recent positions: position p lies in row p % rows. It holds at least
// the unfinished window and, with overlap, the window before it, so dropping the newest positions
// (a rejected draft) needs no undo as long as the ring has room for them.
// Without rows it remembers nothing: a sequence that begins at position 0 and ends with the step.
struct CompressorTail {
  TensorView kv;    // [rows, q*width] f32
  TensorView gate;  // [rows, q*width] f32, position bias added
};

struct CompressSequence {
  std::int64_t begin = 0, end = 0;  // rows of kv and gate
  std::int64_t start = 0;           // position of row `begin`
  std::int64_t first_entry = 0;     // row of `entries` that takes this sequence's first new entry
  CompressorTail tail;
};

// Pools KV projections into one entry per `ratio` positions: a softmax over the positions per
// channel. With overlap, q = 2: columns [0, width) of the window before and [width, 2*width) of
// the window itself.  Emits the entries whose last position lies in this batch, then stores the
// newest rows in the tail.  Source: DeepSeek-V4 §2.3.1-2; architecture.md §3.5.
struct CompressKvArgs {
  TensorView entries;        // [n_entries, width]    out, bf16 | f32: rounded before the norm
  TensorView kv;             // [n_tokens, q*width]   f32
  TensorView gate;           // [n_tokens, q*width]   f32; the position bias is added in place
  TensorView position_bias;  // [ratio, q*width]      f32
  std::int64_t ratio = 0;
  bool overlap = false;
  std::span<const CompressSequence> sequences;
};
inline constexpr KernelName<CompressKvArgs> kCompressKv{"compress_kv"};

// With S the softmax over an entry's rows, P the pooled entry and dP its gradient:
//   dkv = dP * S,  dgate = dP * S * (kv - P),  dposition_bias[r] = sum over positions p = r of
//   dgate
// A row that no entry has pooled (the unfinished window; with overlap also the first half of the
// last window) gets 0. Every sequence starts at position 0.  Source: training.md §4.4.
struct CompressKvBackwardArgs {
  TensorView dkv;             // [n_tokens, q*width] f32  out
  TensorView dgate;           // [n_tokens, q*width] f32  out
  TensorView dposition_bias;  // [ratio, q*width] f32     added to; empty: not wanted
  TensorView dentries;        // [n_entries, width] f32
  TensorView kv;              // [n_tokens, q*width] f32
  TensorView gate;            // [n_tokens, q*width] f32, position bias added
  std::int64_t ratio = 0;
  bool overlap = false;
  std::span<const CompressSequence> sequences;  // tails are not looked at
};
inline constexpr KernelName<CompressKvBackwardArgs> kCompressKvBackward{"compress_kv_backward"};

}  // namespace hadal
