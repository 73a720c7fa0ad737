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

// FP4 whose values are FP8 values, too: what a trainer multiplies and an engine with FP8 products
// expands to. The scales of one kFp8Block of tiles differ by 2^kFp4ScaleSpan at most; where the
// weights' do not, the smaller scales are raised before rounding, and a tile of zeros takes the
// largest of its block.  Source: training.md §3.3 (DeepSeek-V4 §5.2.1).
struct Fp4InFp8 {
  QuantTensor weight;
  std::int64_t n_lifted = 0;  // tiles that lost precision to the rule
};
inline constexpr int kFp4ScaleSpan = 11;
[[nodiscard]] Fp4InFp8 quantize_fp4_in_fp8(const TensorView& w);

// The same values as FP8 with one ue8m0 scale a kFp8Block.
// Throws corrupt_data naming the tile when that is not exact.
[[nodiscard]] QuantTensor fp8_from_fp4(const QuantTensor& w);

// The values of rows [begin, end) as f32: out has (end-begin)*cols elements.
void dequantize_rows(const QuantTensor& w, std::int64_t begin, std::int64_t end, float* out);

}  // namespace hadal
