#include "core/quant.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace hadal {

namespace {

std::uint32_t magnitude_bits(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
}

// to_e4m3 of a value that is finite, without a branch, so that loops over it vectorise.
std::uint8_t encode_e4m3(float x) {
  const std::uint32_t sign = (std::bit_cast<std::uint32_t>(x) >> 24) & 0x80u;
  const std::uint32_t m = std::min(magnitude_bits(x), 0x43e00000u);  // 448
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(m) + 0x1p14f) - 0x46800000u;
  const std::uint32_t normal = ((m + 0x7ffffu + ((m >> 20) & 1u)) >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(sign | (m < 0x3c800000u ? subnormal : normal));
}

// to_e2m1 of a value that is finite: the number of rounding boundaries below it. A tie belongs to
// the even code.
std::uint8_t encode_e2m1(float x) {
  const float m = std::fabs(x);
  const unsigned code = unsigned{m > 0.25f} + unsigned{m >= 0.75f} + unsigned{m > 1.25f} +
                        unsigned{m >= 1.75f} + unsigned{m > 2.5f} + unsigned{m >= 3.5f} +
                        unsigned{m > 5.0f};
  return static_cast<std::uint8_t>(code | ((std::bit_cast<std::uint32_t>(x) >> 28) & 8u));
}

float load(float x) {
  return x;
}
float load(bf16 x) {
  return to_float(x);
}

// Calls fn with a pointer to the source's elements.
template <class Fn>
void with_elements(const TensorView& w, Fn&& fn) {
  switch (w.dtype()) {
    case DType::f32:
      return fn(w.data<const float>());
    case DType::bf16:
      return fn(w.data<const bf16>());
    default:
      throw Error(
          ErrorCode::unsupported,
          fmt::format("quantize: the source is {}, wanted f32 or bf16", to_string(w.dtype())));
  }
}

[[noreturn]] void throw_not_finite(std::int64_t row, std::int64_t column, float value) {
  throw Error(ErrorCode::corrupt_data,
              fmt::format("quantize: row {} column {} is {}; only finite weights can be quantised",
                          row, column, value));
}

// Largest magnitude of n elements as bits, which order like the magnitudes; NaN and
// infinity are the largest.
template <class T>
std::uint32_t max_magnitude(const T* w, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(load(w[i])));
  return largest;
}

template <class T>
void expect_finite(const T* w, std::int64_t n, std::uint32_t largest, std::int64_t row,
                   std::int64_t column) {
  if (largest < 0x7f800000u) return;
  for (std::int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(load(w[i]))) throw_not_finite(row, column + i, load(w[i]));
  }
}

ue8m0 encode_exponent(int e) {
  return {static_cast<std::uint8_t>(std::clamp(e + 127, 0, 254))};
}

// 1 / scale. Exact, and x * (1 / 2^e) is x / 2^e to the bit.
float reciprocal(ue8m0 scale) {
  return to_float(ue8m0{static_cast<std::uint8_t>(254 - scale.bits)});
}

template <class T>
void fp4_rows(const T* w, std::int64_t rows, std::int64_t cols, std::uint8_t* out, ue8m0* scales) {
  constexpr std::int64_t kBlock = kFp4Block.cols;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; c += kBlock) {
      const T* block = w + r * cols + c;
      const std::uint32_t largest = max_magnitude(block, kBlock);
      expect_finite(block, kBlock, largest, r, c);
      const ue8m0 scale = encode_exponent(e2m1_scale_exponent(std::bit_cast<float>(largest)));
      scales[(r * cols + c) / kBlock] = scale;
      const float factor = reciprocal(scale);
      std::uint8_t codes[kBlock];
      for (std::int64_t i = 0; i < kBlock; ++i) codes[i] = encode_e2m1(load(block[i]) * factor);
      std::uint8_t* packed = out + (r * cols + c) / 2;
      for (std::int64_t i = 0; i < kBlock / 2; ++i) {
        packed[i] = static_cast<std::uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
      }
    }
  }
}

template <class T>
void fp8_rows(const T* w, std::int64_t rows, std::int64_t cols, std::uint8_t* out, ue8m0* scales) {
  const std::int64_t col_blocks = (cols + kFp8Block.cols - 1) / kFp8Block.cols;
  std::vector<std::uint32_t> largest(static_cast<std::size_t>(col_blocks));
  for (std::int64_t r0 = 0; r0 < rows; r0 += kFp8Block.rows) {
    const std::int64_t r1 = std::min(rows, r0 + kFp8Block.rows);
    std::fill(largest.begin(), largest.end(), 0u);
    for (std::int64_t r = r0; r < r1; ++r) {
      for (std::int64_t b = 0; b < col_blocks; ++b) {
        const std::int64_t c = b * kFp8Block.cols, n = std::min(kFp8Block.cols, cols - c);
        const std::uint32_t m = max_magnitude(w + r * cols + c, n);
        expect_finite(w + r * cols + c, n, m, r, c);
        auto& block_max = largest[static_cast<std::size_t>(b)];
        block_max = std::max(block_max, m);
      }
    }
    ue8m0* row_scales = scales + (r0 / kFp8Block.rows) * col_blocks;
    for (std::int64_t b = 0; b < col_blocks; ++b) {
      const float amax = std::bit_cast<float>(largest[static_cast<std::size_t>(b)]);
      row_scales[b] = encode_exponent(e4m3_scale_exponent(amax));
    }
    for (std::int64_t r = r0; r < r1; ++r) {
      for (std::int64_t b = 0; b < col_blocks; ++b) {
        const std::int64_t c = b * kFp8Block.cols, n = std::min(kFp8Block.cols, cols - c);
        const float factor = reciprocal(row_scales[b]);
        const T* from = w + r * cols + c;
        std::uint8_t* to = out + r * cols + c;
        for (std::int64_t i = 0; i < n; ++i) to[i] = encode_e4m3(load(from[i]) * factor);
      }
    }
  }
}

// n elements of row r from column c on, unscaled.
void load_elements(const QuantTensor& w, std::int64_t r, std::int64_t c, std::int64_t n,
                   float* out) {
  const std::int64_t at = r * w.cols() + c;
  switch (w.data.dtype()) {
    case DType::f32: {
      const auto* x = w.data.data<const float>() + at;
      std::copy(x, x + n, out);
      return;
    }
    case DType::bf16: {
      const auto* x = w.data.data<const bf16>() + at;
      for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(x[i]);
      return;
    }
    case DType::f8_e4m3: {
      const auto* x = w.data.data<const f8_e4m3>() + at;
      for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(x[i]);
      return;
    }
    case DType::f4_e2m1: {
      const auto* x = reinterpret_cast<const std::uint8_t*>(w.data.bytes());
      for (std::int64_t i = 0; i < n; ++i) {
        out[i] = e2m1_to_float(static_cast<std::uint8_t>(x[(at + i) / 2] >> (4 * ((at + i) & 1))));
      }
      return;
    }
    default:
      throw Error(ErrorCode::unsupported,
                  fmt::format("dequantize: no code for {}", to_string(w.data.dtype())));
  }
}

float scale_at(const QuantTensor& w, std::int64_t i) {
  return w.scale.dtype() == DType::f32 ? w.scale.data<const float>()[i]
                                       : to_float(w.scale.data<const ue8m0>()[i]);
}

}  // namespace

QuantTensor quantize_fp4(const TensorView& w) {
  const std::int64_t rows = w.dim(0), cols = w.dim(1);
  if (cols % kFp4Block.cols != 0) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("quantize_fp4: {} columns; FP4 needs a multiple of {}", cols, kFp4Block.cols));
  }
  QuantTensor q{Tensor::empty({rows, cols}, DType::f4_e2m1),
                Tensor::empty({rows, cols / kFp4Block.cols}, DType::ue8m0), kFp4Block};
  with_elements(w, [&](const auto* elements) {
    fp4_rows(elements, rows, cols, reinterpret_cast<std::uint8_t*>(q.data.bytes()),
             q.scale.data<ue8m0>());
  });
  return q;
}

Fp4InFp8 quantize_fp4_in_fp8(const TensorView& w) {
  Fp4InFp8 result{quantize_fp4(w), 0};
  const std::int64_t rows = w.dim(0), cols = w.dim(1);
  constexpr std::int64_t kTile = kFp4Block.cols;
  const std::int64_t tiles = cols / kTile;
  auto* scales = result.weight.scale.data<ue8m0>();
  auto* codes = reinterpret_cast<std::uint8_t*>(result.weight.data.bytes());
  const auto is_zero = [&](std::int64_t r, std::int64_t t) {
    const std::uint8_t* packed = codes + (r * cols + t * kTile) / 2;
    return std::all_of(packed, packed + kTile / 2,
                       [](std::uint8_t two) { return (two & 0x77u) == 0; });
  };
  for (std::int64_t r0 = 0; r0 < rows; r0 += kFp8Block.rows) {
    const std::int64_t r1 = std::min(rows, r0 + kFp8Block.rows);
    for (std::int64_t t0 = 0; t0 < tiles; t0 += kFp8Block.cols / kTile) {
      const std::int64_t t1 = std::min(tiles, t0 + kFp8Block.cols / kTile);
      int largest = 0;
      for (std::int64_t r = r0; r < r1; ++r) {
        for (std::int64_t t = t0; t < t1; ++t) {
          if (!is_zero(r, t)) largest = std::max<int>(largest, scales[r * tiles + t].bits);
        }
      }
      for (std::int64_t r = r0; r < r1; ++r) {
        for (std::int64_t t = t0; t < t1; ++t) {
          ue8m0& scale = scales[r * tiles + t];
          if (is_zero(r, t)) {
            scale.bits = static_cast<std::uint8_t>(largest);
            continue;
          }
          if (scale.bits + kFp4ScaleSpan >= largest) continue;
          ++result.n_lifted;
          scale.bits = static_cast<std::uint8_t>(largest - kFp4ScaleSpan);
          const float factor = reciprocal(scale);
          with_elements(w, [&](const auto* x) {
            const auto* tile = x + r * cols + t * kTile;
            std::uint8_t* packed = codes + (r * cols + t * kTile) / 2;
            for (std::int64_t i = 0; i < kTile / 2; ++i) {
              packed[i] =
                  static_cast<std::uint8_t>(encode_e2m1(load(tile[2 * i]) * factor) |
                                            (encode_e2m1(load(tile[2 * i + 1]) * factor) << 4));
            }
          });
        }
      }
    }
  }
  return result;
}

QuantTensor fp8_from_fp4(const QuantTensor& w) {
  HADAL_CHECK(w.data.dtype() == DType::f4_e2m1 && w.scale.dtype() == DType::ue8m0);
  const std::int64_t rows = w.rows(), cols = w.cols(), tiles = w.scale.dim(1);
  QuantTensor q{Tensor::empty({rows, cols}, DType::f8_e4m3),
                Tensor::empty({(rows + kFp8Block.rows - 1) / kFp8Block.rows,
                               (cols + kFp8Block.cols - 1) / kFp8Block.cols},
                              DType::ue8m0),
                kFp8Block};
  const auto* scales = w.scale.data<const ue8m0>();
  auto* out = q.data.data<f8_e4m3>();
  std::vector<float> tile(static_cast<std::size_t>(kFp4Block.cols));
  for (std::int64_t i = 0; i < q.scale.numel(); ++i) {
    const std::int64_t r0 = i / q.scale.dim(1) * kFp8Block.rows;
    const std::int64_t t0 = i % q.scale.dim(1) * (kFp8Block.cols / kFp4Block.cols);
    const std::int64_t r1 = std::min(rows, r0 + kFp8Block.rows);
    const std::int64_t t1 = std::min(tiles, t0 + kFp8Block.cols / kFp4Block.cols);
    int largest = 0;
    for (std::int64_t r = r0; r < r1; ++r) {
      for (std::int64_t t = t0; t < t1; ++t) {
        largest = std::max<int>(largest, scales[r * tiles + t].bits);
      }
    }
    // The largest value of the largest tile, 6 * 2^6, is below E4M3's 448.
    const int block = std::max(largest - 6, 0);
    q.scale.data<ue8m0>()[i].bits = static_cast<std::uint8_t>(block);
    for (std::int64_t r = r0; r < r1; ++r) {
      for (std::int64_t t = t0; t < t1; ++t) {
        const float factor = std::ldexp(1.0f, scales[r * tiles + t].bits - block);
        load_elements(w, r, t * kFp4Block.cols, kFp4Block.cols, tile.data());
        for (std::int64_t k = 0; k < kFp4Block.cols; ++k) {
          const float value = tile[static_cast<std::size_t>(k)] * factor;
          const f8_e4m3 code = to_e4m3(value);
          if (to_float(code) != value) {
            throw Error(
                ErrorCode::corrupt_data,
                fmt::format("fp8_from_fp4: row {} tile {} has scale 2^{}, its block 2^{}: too far "
                            "apart for exact FP8 (at most 2^{}); quantise with "
                            "quantize_fp4_in_fp8",
                            r, t, scales[r * tiles + t].bits - 127, largest - 127, kFp4ScaleSpan));
          }
          out[r * cols + t * kFp4Block.cols + k] = code;
        }
      }
    }
  }
  return q;
}

QuantTensor quantize_fp8(const TensorView& w) {
  const std::int64_t rows = w.dim(0), cols = w.dim(1);
  QuantTensor q{Tensor::empty({rows, cols}, DType::f8_e4m3),
                Tensor::empty({(rows + kFp8Block.rows - 1) / kFp8Block.rows,
                               (cols + kFp8Block.cols - 1) / kFp8Block.cols},
                              DType::ue8m0),
                kFp8Block};
  with_elements(w, [&](const auto* elements) {
    fp8_rows(elements, rows, cols, reinterpret_cast<std::uint8_t*>(q.data.bytes()),
             q.scale.data<ue8m0>());
  });
  return q;
}

void dequantize_rows(const QuantTensor& w, std::int64_t begin, std::int64_t end, float* out) {
  const std::int64_t cols = w.cols();
  const std::int64_t piece = w.scale ? w.block.cols : std::max<std::int64_t>(cols, 1);
  for (std::int64_t r = begin; r < end; ++r) {
    for (std::int64_t c = 0; c < cols; c += piece) {
      const std::int64_t n = std::min(piece, cols - c);
      load_elements(w, r, c, n, out);
      if (w.scale) {
        const float scale = scale_at(w, (r / w.block.rows) * w.scale.dim(1) + c / w.block.cols);
        for (std::int64_t i = 0; i < n; ++i) out[i] *= scale;
      }
      out += n;
    }
  }
}

}  // namespace hadal
