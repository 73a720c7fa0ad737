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

// x[t, :] = sum_j y[t, j, :], ascending.
struct SumStreamsArgs {
  TensorView x;  // [n_tokens, hidden]     f32
  TensorView y;  // [n_tokens, n, hidden]  f32
};
inline constexpr KernelName<SumStreamsArgs> kSumStreams{"sum_streams"};

// y += x.
struct AddInPlaceArgs {
  TensorView y;  // any shape  f32
  TensorView x;  // shape of y  f32
};
inline constexpr KernelName<AddInPlaceArgs> kAddInPlace{"add_in_place"};

}  // namespace hadal
