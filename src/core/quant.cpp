#include "core/quant.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace hadal {

namespace {

float element(const TensorView& w, std::int64_t i) {
  switch (w.dtype()) {
    case DType::f32:
      return w.data<const float>()[i];
    case DType::bf16:
      return to_float(w.data<const bf16>()[i]);
    default:
      throw Error(
          ErrorCode::unsupported,
          fmt::format("quantize: the source is {}, wanted f32 or bf16", to_string(w.dtype())));
  }
}

// Largest magnitude in a block; NaN or infinity anywhere is refused.
float block_amax(const TensorView& w, std::int64_t row0, std::int64_t row1, std::int64_t col0,
                 std::int64_t col1) {
  const std::int64_t cols = w.dim(1);
  float amax = 0.0f;
  for (std::int64_t r = row0; r < row1; ++r) {
    for (std::int64_t c = col0; c < col1; ++c) {
      const float v = std::fabs(element(w, r * cols + c));
      if (!std::isfinite(v)) {
        throw Error(ErrorCode::corrupt_data,
                    fmt::format("quantize: row {} column {} is {}; only finite weights can be "
                                "quantised",
                                r, c, element(w, r * cols + c)));
      }
      amax = std::max(amax, v);
    }
  }
  return amax;
}

ue8m0 encode_exponent(int e) {
  return {static_cast<std::uint8_t>(std::clamp(e + 127, 0, 254))};
}

}  // namespace

QuantTensor quantize_fp4(const TensorView& w) {
  const std::int64_t rows = w.dim(0), cols = w.dim(1);
  if (cols % kFp4Block.cols != 0) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("quantize_fp4: {} columns; FP4 needs a multiple of {}", cols, kFp4Block.cols));
  }
  QuantTensor q{Tensor::zeros({rows, cols}, DType::f4_e2m1),
                Tensor::empty({rows, cols / kFp4Block.cols}, DType::ue8m0), kFp4Block};
  auto* out = reinterpret_cast<std::uint8_t*>(q.data.bytes());
  auto* scales = q.scale.data<ue8m0>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t b = 0; b < cols / kFp4Block.cols; ++b) {
      const std::int64_t c0 = b * kFp4Block.cols;
      const float amax = block_amax(w, r, r + 1, c0, c0 + kFp4Block.cols);
      const ue8m0 scale = encode_exponent(e2m1_scale_exponent(amax));
      scales[r * (cols / kFp4Block.cols) + b] = scale;
      for (std::int64_t c = c0; c < c0 + kFp4Block.cols; ++c) {
        // Division by a power of two is exact down to the subnormals.
        const std::uint8_t code = to_e2m1(element(w, r * cols + c) / to_float(scale));
        out[(r * cols + c) / 2] |= static_cast<std::uint8_t>(code << (4 * (c & 1)));
      }
    }
  }
  return q;
}

QuantTensor quantize_fp8(const TensorView& w) {
  const std::int64_t rows = w.dim(0), cols = w.dim(1);
  const std::int64_t row_blocks = (rows + kFp8Block.rows - 1) / kFp8Block.rows;
  const std::int64_t col_blocks = (cols + kFp8Block.cols - 1) / kFp8Block.cols;
  QuantTensor q{Tensor::empty({rows, cols}, DType::f8_e4m3),
                Tensor::empty({row_blocks, col_blocks}, DType::ue8m0), kFp8Block};
  auto* out = q.data.data<f8_e4m3>();
  for (std::int64_t rb = 0; rb < row_blocks; ++rb) {
    for (std::int64_t cb = 0; cb < col_blocks; ++cb) {
      const std::int64_t r1 = std::min(rows, (rb + 1) * kFp8Block.rows);
      const std::int64_t c1 = std::min(cols, (cb + 1) * kFp8Block.cols);
      const float amax = block_amax(w, rb * kFp8Block.rows, r1, cb * kFp8Block.cols, c1);
      const ue8m0 scale = encode_exponent(e4m3_scale_exponent(amax));
      q.scale.data<ue8m0>()[rb * col_blocks + cb] = scale;
      for (std::int64_t r = rb * kFp8Block.rows; r < r1; ++r) {
        for (std::int64_t c = cb * kFp8Block.cols; c < c1; ++c) {
          out[r * cols + c] = to_e4m3(element(w, r * cols + c) / to_float(scale));
        }
      }
    }
  }
  return q;
}

void dequantize_rows(const QuantTensor& w, std::int64_t begin, std::int64_t end, float* out) {
  const std::int64_t cols = w.cols();
  const std::int64_t scale_cols = w.scale ? w.scale.dim(1) : 0;
  for (std::int64_t r = begin; r < end; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::int64_t i = r * cols + c;
      float v = 0.0f;
      switch (w.data.dtype()) {
        case DType::f32:
          v = w.data.data<const float>()[i];
          break;
        case DType::bf16:
          v = to_float(w.data.data<const bf16>()[i]);
          break;
        case DType::f8_e4m3:
          v = to_float(w.data.data<const f8_e4m3>()[i]);
          break;
        case DType::f4_e2m1:
          v = e2m1_to_float(static_cast<std::uint8_t>(
              std::to_integer<unsigned>(w.data.bytes()[i / 2]) >> (4 * (i & 1))));
          break;
        default:
          throw Error(ErrorCode::unsupported,
                      fmt::format("dequantize: no code for {}", to_string(w.data.dtype())));
      }
      if (w.scale) {
        const std::int64_t s = (r / w.block.rows) * scale_cols + c / w.block.cols;
        v *= w.scale.dtype() == DType::f32 ? w.scale.data<const float>()[s]
                                           : to_float(w.scale.data<const ue8m0>()[s]);
      }
      *out++ = v;
    }
  }
}

}  // namespace hadal
