#include "kernels/cpu/attention_values.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_values.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace hadal::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VecF32 = hn::Vec<F32>;

HWY_INLINE VecF32 load_row(F32 d, const float* p) {
  return hn::LoadU(d, p);
}
HWY_INLINE VecF32 load_row(F32 d, const bf16* p) {
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<std::uint16_t, F32> du16;
  const auto narrow = hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, narrow)));
}

// kHeads x 2 vectors of accumulators.
template <int kHeads, class Row>
HWY_INLINE void accumulate_tile(float* out, const float* p, std::int64_t p_stride, const Row* rows,
                                std::int64_t n_rows, std::int64_t width, std::int64_t c) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  VecF32 a0, a1, a2, a3, b0, b1, b2, b3;
  a0 = hn::LoadU(d, out + c), b0 = hn::LoadU(d, out + c + lanes);
  if constexpr (kHeads == 4) {
    a1 = hn::LoadU(d, out + width + c), b1 = hn::LoadU(d, out + width + c + lanes);
    a2 = hn::LoadU(d, out + 2 * width + c), b2 = hn::LoadU(d, out + 2 * width + c + lanes);
    a3 = hn::LoadU(d, out + 3 * width + c), b3 = hn::LoadU(d, out + 3 * width + c + lanes);
  }
  for (std::int64_t j = 0; j < n_rows; ++j) {
    const auto r0 = load_row(d, rows + j * width + c);
    const auto r1 = load_row(d, rows + j * width + c + lanes);
    const auto p0 = hn::Set(d, p[j]);
    a0 = hn::MulAdd(p0, r0, a0), b0 = hn::MulAdd(p0, r1, b0);
    if constexpr (kHeads == 4) {
      const auto p1 = hn::Set(d, p[p_stride + j]);
      const auto p2 = hn::Set(d, p[2 * p_stride + j]);
      const auto p3 = hn::Set(d, p[3 * p_stride + j]);
      a1 = hn::MulAdd(p1, r0, a1), b1 = hn::MulAdd(p1, r1, b1);
      a2 = hn::MulAdd(p2, r0, a2), b2 = hn::MulAdd(p2, r1, b2);
      a3 = hn::MulAdd(p3, r0, a3), b3 = hn::MulAdd(p3, r1, b3);
    }
  }
  hn::StoreU(a0, d, out + c), hn::StoreU(b0, d, out + c + lanes);
  if constexpr (kHeads == 4) {
    hn::StoreU(a1, d, out + width + c), hn::StoreU(b1, d, out + width + c + lanes);
    hn::StoreU(a2, d, out + 2 * width + c), hn::StoreU(b2, d, out + 2 * width + c + lanes);
    hn::StoreU(a3, d, out + 3 * width + c), hn::StoreU(b3, d, out + 3 * width + c + lanes);
  }
}

// Channels beyond the last whole tile.
template <class Row>
HWY_INLINE void accumulate_tail(float* out, const float* p, const Row* rows, std::int64_t n_rows,
                                std::int64_t width, std::int64_t c0) {
  const hn::CappedTag<float, 1> d1;
  for (std::int64_t c = c0; c < width; ++c) {
    auto acc = hn::Set(d1, out[c]);
    for (std::int64_t j = 0; j < n_rows; ++j) {
      float value;
      if constexpr (sizeof(Row) == 2)
        value = to_float(rows[j * width + c]);
      else
        value = rows[j * width + c];
      acc = hn::MulAdd(hn::Set(d1, p[j]), hn::Set(d1, value), acc);
    }
    out[c] = hn::GetLane(acc);
  }
}

template <class Row>
HWY_INLINE void accumulate(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                           const Row* rows, std::int64_t n_rows, std::int64_t width) {
  const std::int64_t tile = 2 * static_cast<std::int64_t>(hn::Lanes(F32()));
  const std::int64_t whole = width / tile * tile;
  for (std::int64_t c = 0; c < whole; c += tile) {
    std::int64_t h = 0;
    for (; h + 4 <= n_heads; h += 4) {
      accumulate_tile<4>(out + h * width, p + h * p_stride, p_stride, rows, n_rows, width, c);
    }
    for (; h < n_heads; ++h) {
      accumulate_tile<1>(out + h * width, p + h * p_stride, p_stride, rows, n_rows, width, c);
    }
  }
  for (std::int64_t h = 0; h < n_heads && whole < width; ++h) {
    accumulate_tail(out + h * width, p + h * p_stride, rows, n_rows, width, whole);
  }
}

void accumulate_bf16(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                     const bf16* rows, std::int64_t n_rows, std::int64_t width) {
  accumulate(out, p, p_stride, n_heads, rows, n_rows, width);
}
void accumulate_f32(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                    const float* rows, std::int64_t n_rows, std::int64_t width) {
  accumulate(out, p, p_stride, n_heads, rows, n_rows, width);
}

}  // namespace hadal::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hadal::kernels::cpu {

HWY_EXPORT(accumulate_bf16);
HWY_EXPORT(accumulate_f32);

void accumulate_values(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                       const bf16* rows, std::int64_t n_rows, std::int64_t width) {
  HWY_DYNAMIC_DISPATCH(accumulate_bf16)(out, p, p_stride, n_heads, rows, n_rows, width);
}
void accumulate_values(float* out, const float* p, std::int64_t p_stride, std::int64_t n_heads,
                       const float* rows, std::int64_t n_rows, std::int64_t width) {
  HWY_DYNAMIC_DISPATCH(accumulate_f32)(out, p, p_stride, n_heads, rows, n_rows, width);
}

}  // namespace hadal::kernels::cpu
#endif
