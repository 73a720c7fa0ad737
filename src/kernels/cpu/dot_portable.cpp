#include <cmath>
#include <cstring>

#include "kernels/cpu/dot_tier.h"

namespace hadal::kernels::cpu {

namespace {

float scale_of(const WeightRows& w, std::int64_t row, std::int64_t col) {
  if (w.scale == nullptr) return 1.0f;
  const std::int64_t per_row = (w.cols + w.block.cols - 1) / w.block.cols;
  const std::int64_t i = row / w.block.rows * per_row + col / w.block.cols;
  if (w.scale_dtype == DType::ue8m0) return to_float(ue8m0{static_cast<std::uint8_t>(w.scale[i])});
  float s;
  std::memcpy(&s, w.scale + 4 * i, 4);
  return s;
}

float element(const WeightRows& w, std::int64_t row, std::int64_t col) {
  const std::int64_t i = row * w.cols + col;
  switch (w.dtype) {
    case DType::f32: {
      float v;
      std::memcpy(&v, w.data + 4 * i, 4);
      return v;
    }
    case DType::bf16: {
      bf16 v;
      std::memcpy(&v, w.data + 2 * i, 2);
      return to_float(v);
    }
    case DType::f8_e4m3:
      return to_float(f8_e4m3{static_cast<std::uint8_t>(w.data[i])}) * scale_of(w, row, col);
    default:
      return e2m1_to_float(
                 static_cast<std::uint8_t>(static_cast<unsigned>(w.data[i / 2]) >> (4 * (i & 1)))) *
             scale_of(w, row, col);
  }
}

}  // namespace

void dot_portable(const DotTask& task) {
  const WeightRows& w = task.w;
  const bool even_odd = w.dtype == DType::bf16 || w.dtype == DType::f4_e2m1;
  const auto* x = reinterpret_cast<const float*>(task.x);
  for (std::int64_t n = task.n0; n < task.n1; ++n) {
    for (std::int64_t m = task.m0; m < task.m1; ++m) {
      const float* row = x + m * task.x_stride;
      float acc[16] = {};
      for (std::int64_t k = 0; k < w.cols; k += 16) {
        for (int l = 0; l < 16; ++l) {
          const std::int64_t col = even_odd ? k / 32 * 32 + 2 * l + k / 16 % 2 : k + l;
          if (col < w.cols) acc[l] = std::fma(row[k + l], element(w, n, col), acc[l]);
        }
      }
      for (int width = 8; width > 0; width /= 2) {
        for (int l = 0; l < width; ++l) acc[l] += acc[l + width];
      }
      task.y[(m - task.m0) * task.ldy + (n - task.n0)] = acc[0];
    }
  }
}

}  // namespace hadal::kernels::cpu
