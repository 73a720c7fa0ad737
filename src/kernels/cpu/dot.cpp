#include "kernels/cpu/dot.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cpu/dot_tier.h"

namespace hadal::kernels::cpu {

WeightRows rows_of(const QuantTensor& w) {
  if (!w.scale) return rows_of(w.data.view());
  const DType dtype = w.data.dtype(), scale = w.scale.dtype();
  const bool fp8 =
      dtype == DType::f8_e4m3 && w.block.rows > 0 && w.block.cols > 0 && w.block.cols % 32 == 0;
  const bool fp4 = dtype == DType::f4_e2m1 && w.block == kFp4Block && w.cols() % 32 == 0;
  if (!(fp8 || fp4) || (scale != DType::ue8m0 && scale != DType::f32)) {
    throw Error(
        ErrorCode::unsupported,
        fmt::format("dot: no code for {} weights of {} columns with {} scales in blocks "
                    "{}x{}; there is f8_e4m3 with block columns a multiple of 32 and "
                    "f4_e2m1 in blocks 1x32, scales ue8m0 or f32",
                    to_string(dtype), w.cols(), to_string(scale), w.block.rows, w.block.cols));
  }
  return {dtype, w.data.bytes(), w.scale.bytes(), scale, w.rows(), w.cols(), w.block};
}

WeightRows rows_of(const TensorView& w) {
  if (w.dtype() != DType::f32 && w.dtype() != DType::bf16) {
    throw Error(ErrorCode::unsupported,
                fmt::format("dot: plain weights are {}, wanted f32 or bf16 (f8_e4m3 and f4_e2m1 "
                            "need their scales)",
                            to_string(w.dtype())));
  }
  return {w.dtype(), w.bytes(), nullptr, DType::ue8m0, w.dim(0), w.dim(1), {}};
}

void dot_rows(const ActivationPanel& x, const WeightRows& w, std::int64_t n0, std::int64_t n1,
              float* y, std::int64_t ldy) {
  dot_rows(x, 0, x.n_rows(), w, n0, n1, y, ldy);
}

void dot_rows(const ActivationPanel& x, std::int64_t m0, std::int64_t m1, const WeightRows& w,
              std::int64_t n0, std::int64_t n1, float* y, std::int64_t ldy) {
  x.expect_format(w);
  HADAL_CHECK(m0 >= 0 && m1 <= x.n_rows() && n0 >= 0 && n1 <= w.rows);
  if (m0 >= m1 || n0 >= n1) return;
  const DotTask task{x.buffer_.get(), x.stride_, m0, m1, w, n0, n1, y, ldy};
#if defined(__x86_64__)
  if (x.chain_ == DotChain::bf16) return dot_avx512_bf16(task);
  switch (x.isa_) {
    case Isa::portable:
      return dot_portable(task);
    case Isa::avx2:
      return dot_avx2(task);
    case Isa::avx512:
    case Isa::avx512_bf16:
      return dot_avx512(task);
  }
#else
  dot_portable(task);
#endif
}

std::int64_t dot_grain(const ThreadPool& pool, std::int64_t n_x_rows, const WeightRows& w) {
  // 24 rows fill the tiles of every kernel. A quarter of a million products take some ten
  // microseconds, well above the price of a hand-over.
  constexpr std::int64_t kTile = 24, kMinProducts = 1 << 18;
  const std::int64_t row_products = std::max<std::int64_t>(1, n_x_rows * w.cols);
  const std::int64_t grain =
      pool.grain_for(w.rows, (kMinProducts + row_products - 1) / row_products);
  return (grain + kTile - 1) / kTile * kTile;
}

void dot_all(ThreadPool& pool, const ActivationPanel& x, const WeightRows& w, float* y,
             std::int64_t ldy) {
  pool.parallel_for(w.rows, dot_grain(pool, x.n_rows(), w),
                    [&](std::int64_t n0, std::int64_t n1) { dot_rows(x, w, n0, n1, y + n0, ldy); });
}

}  // namespace hadal::kernels::cpu
