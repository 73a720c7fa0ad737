#pragma once

#include "kernels/registry.h"

namespace hadal {

// y[t, j, :] = streams[t, j, :] + x[t, :]
struct AddToStreamsArgs {
  TensorView y;        // [n_tokens, n, hidden]  bf16 | f32
  TensorView streams;  // [n_tokens, n, hidden]  dtype of y
  TensorView x;        // [n_tokens, hidden]     dtype of y
};
inline constexpr KernelName<AddToStreamsArgs> kAddToStreams{"add_to_streams"};

// y = x * factor, in f32, one rounding.
struct ScaleArgs {
  TensorView y;  // any shape  bf16 | f32
  TensorView x;  // dtype of y
  float factor;
};
inline constexpr KernelName<ScaleArgs> kScale{"scale"};

// y = x, byte for byte.
struct CopyArgs {
  TensorView y;  // any shape  bf16 | f32
  TensorView x;  // shape and dtype of y
};
inline constexpr KernelName<CopyArgs> kCopy{"copy"};

}  // namespace hadal
