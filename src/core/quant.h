// A tensor in a storage format: data, scales, and the block that one scale covers. The one
// definition of "1x32" and "128x128".
#pragma once

#include "core/tensor.h"

namespace hadal {

struct QuantBlock {
  std::int64_t rows = 1;
  std::int64_t cols = 1;
  friend bool operator==(const QuantBlock&, const QuantBlock&) = default;
};

inline constexpr QuantBlock kFp4Block{1, 32};        // MXFP4 experts, indexer keys
inline constexpr QuantBlock kFp8Block{128, 128};     // dense FP8 linears
inline constexpr std::int64_t kActQuantBlock = 128;  // activations, along the input axis
inline constexpr std::int64_t kKvQuantBlock = 64;    // KV entries, along the head

// data  [rows, cols]  f32 | bf16 | f8_e4m3 | f4_e2m1
// scale [ceil(rows/block.rows), ceil(cols/block.cols)]  ue8m0 | f32; empty for f32 and bf16
// The value of an element is data * scale of its block.
struct QuantTensor {
  Tensor data;
  Tensor scale;
  QuantBlock block;

  [[nodiscard]] std::int64_t rows() const { return data.dim(0); }
  [[nodiscard]] std::int64_t cols() const { return data.dim(1); }
  [[nodiscard]] std::size_t nbytes() const { return data.nbytes() + (scale ? scale.nbytes() : 0); }
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(data); }
};

// Round-to-nearest conversion of w [rows, cols] (f32 | bf16) to the published weight formats.
// Throws invalid_argument on a column count that the packing cannot hold, corrupt_data on NaN.
// Source: architecture.md §2.4 (FP4), §2.5 (FP8).
[[nodiscard]] QuantTensor quantize_fp4(const TensorView& w);
[[nodiscard]] QuantTensor quantize_fp8(const TensorView& w);

// The values of rows [begin, end) as f32: out has (end-begin)*cols elements.
void dequantize_rows(const QuantTensor& w, std::int64_t begin, std::int64_t end, float* out);

}  // namespace hadal
