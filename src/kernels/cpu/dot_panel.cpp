// Filling an ActivationPanel: gather, optional rounding to fp8, column order, element type.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

constexpr std::int64_t kBlock = kActQuantBlock;  // columns handled at once
static_assert(kBlock % 64 == 0, "a block holds whole steps of every column order");

// The nearest e4m3 to v, saturated (NaN, too), without leaving f32 and without branches, which the
// compiler would not vectorise: hence the masks.
HADAL_SIMD_INLINE float round_to_e4m3(float v) {
  constexpr auto kLargest = std::bit_cast<std::uint32_t>(448.0f);
  constexpr auto kSmallestNormal = std::bit_cast<std::uint32_t>(0x1p-6f);
  const auto bits = std::bit_cast<std::uint32_t>(v);
  const std::uint32_t u = std::min(bits & 0x7fffffffu, kLargest);
  // Below 2^-6 the codes are multiples of 2^-9: adding 1.5 * 2^14 leaves exactly those bits.
  const float small = (std::bit_cast<float>(u) + 0x1.8p14f) - 0x1.8p14f;
  const std::uint32_t large = (u + 0x7ffffu + ((u >> 20) & 1u)) & ~0xfffffu;
  const std::uint32_t is_small = 0u - static_cast<std::uint32_t>(u < kSmallestNormal);
  const std::uint32_t magnitude =
      (std::bit_cast<std::uint32_t>(small) & is_small) | (large & ~is_small);
  return std::bit_cast<float>(magnitude | (bits & 0x80000000u));
}

// v[0, kBlock): to the nearest e4m3 times the block's scale. A NaN spoils its block.
HADAL_SIMD_INLINE void quantize_block(float* v) {
  // Magnitudes compare as integers do, and NaN is the largest.
  std::uint32_t lanes[16] = {};
  for (std::int64_t i = 0; i < kBlock; i += 16) {
    for (int l = 0; l < 16; ++l) {
      const std::uint32_t a = std::bit_cast<std::uint32_t>(v[i + l]) & 0x7fffffffu;
      lanes[l] = lanes[l] > a ? lanes[l] : a;
    }
  }
  std::uint32_t amax = 0;
  for (const std::uint32_t lane : lanes) amax = amax > lane ? amax : lane;
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  const bool finite = amax < kInfinity;
  const int e = finite ? e4m3_scale_exponent(std::bit_cast<float>(amax)) : 0;
  const float inverse = exp2_int(-e);
  const float scale = finite ? exp2_int(e) : std::bit_cast<float>(0x7fc00000u);
  for (std::int64_t i = 0; i < kBlock; ++i) v[i] = round_to_e4m3(v[i] * inverse) * scale;
}

HADAL_SIMD_INLINE void reorder_block(const float* v, ColumnOrder order, float* out) {
  switch (order) {
    case ColumnOrder::natural:
      std::copy_n(v, kBlock, out);
      return;
    case ColumnOrder::even_odd32:
      for (std::int64_t b = 0; b < kBlock; b += 32) {
        for (int l = 0; l < 16; ++l) out[b + l] = v[b + 2 * l];
        for (int l = 0; l < 16; ++l) out[b + 16 + l] = v[b + 2 * l + 1];
      }
      return;
    case ColumnOrder::nibbles32:
      // Pairs of columns four apart: (0, 4), (8, 12), (16, 20), (24, 28), then (1, 5) and so on.
      for (std::int64_t b = 0; b < kBlock; b += 32) {
        for (int first = 0; first < 4; ++first) {
          for (int i = 0; i < 8; ++i) out[b + 8 * first + i] = v[b + 4 * i + first];
        }
      }
      return;
    case ColumnOrder::unpack64:
      // Bytes unpacked to words inside 128-bit lanes: the low eight of every sixteen, then the
      // high eight.
      for (std::int64_t b = 0; b < kBlock; b += 64) {
        for (int half = 0; half < 2; ++half) {
          for (int lane = 0; lane < 4; ++lane) {
            std::copy_n(v + b + 16 * lane + 8 * half, 8, out + b + 32 * half + 8 * lane);
          }
        }
      }
      return;
  }
}

struct RowPlan {
  std::int64_t cols, padded_cols;
  ActivationQuant quant;
  ColumnOrder order;
};

template <class X, class Out>
HADAL_SIMD_INLINE void fill_row(const X* x, const RowPlan& plan, Out* out) {
  alignas(64) float v[kBlock];
  alignas(64) float ordered[kBlock];
  for (std::int64_t c = 0; c < plan.padded_cols; c += kBlock) {
    const std::int64_t n = plan.cols - c;
    if (n >= kBlock) {
      for (std::int64_t i = 0; i < kBlock; ++i) v[i] = load(x[c + i]);
    } else {
      for (std::int64_t i = 0; i < kBlock; ++i) v[i] = i < n ? load(x[c + i]) : 0.0f;
    }
    if (plan.quant == ActivationQuant::fp8_block128) quantize_block(v);
    reorder_block(v, plan.order, ordered);
    if (plan.padded_cols - c >= kBlock) {
      for (std::int64_t i = 0; i < kBlock; ++i) put(out[c + i], ordered[i]);
    } else {
      for (std::int64_t i = 0; i < 64; ++i) put(out[c + i], ordered[i]);
    }
  }
}

HADAL_SIMD_CLONES void fill_f32_f32(const float* x, const RowPlan& plan, float* out) {
  fill_row(x, plan, out);
}
HADAL_SIMD_CLONES void fill_bf16_f32(const bf16* x, const RowPlan& plan, float* out) {
  fill_row(x, plan, out);
}
HADAL_SIMD_CLONES void fill_f32_bf16(const float* x, const RowPlan& plan, bf16* out) {
  fill_row(x, plan, out);
}
HADAL_SIMD_CLONES void fill_bf16_bf16(const bf16* x, const RowPlan& plan, bf16* out) {
  fill_row(x, plan, out);
}

DotChain chain_for(Isa isa, DType x, const WeightRows& w, ActivationQuant quant) {
  if (isa != Isa::avx512_bf16) return DotChain::f32;
  if (x != DType::bf16 && quant == ActivationQuant::none) return DotChain::f32;
  if (w.dtype == DType::bf16) return DotChain::bf16;
  if (w.scale_dtype != DType::ue8m0) return DotChain::f32;  // its products are not exact in bf16
  if (w.dtype == DType::f4_e2m1) return DotChain::bf16;
  // f8 is decoded 64 columns at a time, which must share a scale.
  return w.dtype == DType::f8_e4m3 && w.block.cols % 64 == 0 ? DotChain::bf16 : DotChain::f32;
}

ColumnOrder order_for(DotChain chain, DType w) {
  if (chain == DotChain::bf16) {
    if (w == DType::f8_e4m3) return ColumnOrder::unpack64;
    return w == DType::f4_e2m1 ? ColumnOrder::nibbles32 : ColumnOrder::natural;
  }
  return w == DType::bf16 || w == DType::f4_e2m1 ? ColumnOrder::even_odd32 : ColumnOrder::natural;
}

}  // namespace

void ActivationPanel::expect_format(const WeightRows& w) const {
  if (w.cols == cols_ && w.dtype == w_dtype_ &&
      (w.scale == nullptr || (w.scale_dtype == w_scale_dtype_ && w.block.cols == w_block_cols_))) {
    return;
  }
  throw Error(
      ErrorCode::invalid_argument,
      fmt::format("dot: the activations were prepared for {} weights of {} columns, scales {} per "
                  "{} columns; these are {}, {} columns, scales {} per {}",
                  to_string(w_dtype_), cols_, to_string(w_scale_dtype_), w_block_cols_,
                  to_string(w.dtype), w.cols, to_string(w.scale_dtype), w.block.cols));
}

void ActivationPanel::FreeAligned::operator()(std::byte* p) const {
  std::free(p);
}

void ActivationPanel::prepare(ThreadPool& pool, const TensorView& x, const WeightRows& w,
                              ActivationQuant quant) {
  fill(pool, x, nullptr, x.dim(0), w, quant);
}

void ActivationPanel::prepare_gather(ThreadPool& pool, const TensorView& x,
                                     std::span<const std::int32_t> indices, const WeightRows& w,
                                     ActivationQuant quant) {
  for (const std::int32_t i : indices) HADAL_CHECK(i >= 0 && i < x.dim(0));
  fill(pool, x, indices.data(), static_cast<std::int64_t>(indices.size()), w, quant);
}

void ActivationPanel::fill(ThreadPool& pool, const TensorView& x, const std::int32_t* indices,
                           std::int64_t n_rows, const WeightRows& w, ActivationQuant quant) {
  if (x.dim(1) != w.cols) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("dot: the activations have {} columns, the weights {}; they must agree",
                            x.dim(1), w.cols));
  }
  if (x.dtype() != DType::f32 && x.dtype() != DType::bf16) {
    throw Error(ErrorCode::unsupported,
                fmt::format("dot: activations are {}, wanted f32 or bf16", to_string(x.dtype())));
  }
  isa_ = active_isa();
  chain_ = chain_for(isa_, x.dtype(), w, quant);
  order_ = order_for(chain_, w.dtype);
  w_dtype_ = w.dtype;
  w_scale_dtype_ = w.scale_dtype;
  w_block_cols_ = w.block.cols;
  n_rows_ = n_rows;
  cols_ = w.cols;
  const std::int64_t padded_cols = (cols_ + 63) / 64 * 64;
  // One cache line more than the columns need, and an odd number of lines: rows of a tile then
  // fall into different cache sets, whatever power of two cols is.
  const std::int64_t element = chain_ == DotChain::bf16 ? 2 : 4;
  stride_ = ((padded_cols * element / 64) | 1) * 64 / element;
  const std::int64_t padded_rows = (n_rows + 3) / 4 * 4;
  const auto needed = static_cast<std::size_t>(padded_rows * stride_ * element);
  if (needed > capacity_) {
    buffer_.reset();
    capacity_ = 0;
    buffer_.reset(static_cast<std::byte*>(std::aligned_alloc(64, needed)));
    if (!buffer_) throw std::bad_alloc();
    capacity_ = needed;
  }
  const RowPlan plan{cols_, padded_cols, quant, order_};
  auto fill_rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::byte* out = buffer_.get() + row * stride_ * element;
      if (row >= n_rows) {
        std::memset(out, 0, static_cast<std::size_t>(stride_ * element));
        continue;
      }
      const std::int64_t source = (indices != nullptr ? indices[row] : row) * cols_;
      auto* out_f32 = reinterpret_cast<float*>(out);
      auto* out_bf16 = reinterpret_cast<bf16*>(out);
      if (x.dtype() == DType::f32) {
        const float* in = x.data<const float>() + source;
        chain_ == DotChain::f32 ? fill_f32_f32(in, plan, out_f32)
                                : fill_f32_bf16(in, plan, out_bf16);
      } else {
        const bf16* in = x.data<const bf16>() + source;
        chain_ == DotChain::f32 ? fill_bf16_f32(in, plan, out_f32)
                                : fill_bf16_bf16(in, plan, out_bf16);
      }
    }
  };
  // About 16k elements are worth waking a thread for.
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, cols_));
  pool.parallel_for(padded_rows, pool.grain_for(padded_rows, rows_per_task), fill_rows);
}

}  // namespace hadal::kernels::cpu
