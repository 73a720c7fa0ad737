// Activations into the order of the tensor cores' operands, rounded to E4M3 or as they are.
//
// A warp has four blocks of 128 columns of one row, four neighbouring columns a lane: as much in
// flight as memory wants. What a lane holds lands in one piece (E4M3) or two (bf16) of 4 bytes.
// Where the columns of a block lie follows the weights' format: matmul_fragment.cuh, and
// e4m3_fragment.cuh for E4M3.
#include "kernels/cuda/device/matmul_fragment.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kBlocksOfWarp = 4;

struct Pack {
  std::byte* to;
  float* scale;
  const __nv_bfloat16* x;
  const std::int32_t *row, *n_filled;
  int n_rows, packed_rows, n_groups, cols, n_blocks;
  bool wide;  // four columns can be loaded at once
};

// In which unit of four columns of a block's E4M3 the columns of a lane lie.
template <WeightFormat F>
__device__ __forceinline__ int e4m3_unit(int lane) {
  static_assert(F == WeightFormat::fp8 || F == WeightFormat::fp4);
  if constexpr (F == WeightFormat::fp8) {
    const int q = lane / 16, t = lane % 16 / 4, r = lane % 4 / 2;
    return 8 * (2 * q + r) + 4 * (lane % 2) + t;
  } else {
    const int t = lane / 8, s = lane % 8 / 2;
    return 8 * s + 4 * (lane % 2) + t;
  }
}

template <WeightFormat F, bool kE4m3>
__global__ __launch_bounds__(kThreads) void pack_kernel(const Pack a) {
  const std::int64_t warp = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = (a.n_blocks + kBlocksOfWarp - 1) / kBlocksOfWarp;
  const int first = static_cast<int>(warp % pieces) * kBlocksOfWarp;
  const std::int64_t row_group = warp / pieces;
  const int group = static_cast<int>(row_group % a.n_groups);
  const auto row = static_cast<int>(row_group / a.n_groups);
  if (row >= a.n_rows || (a.n_filled != nullptr && row >= *a.n_filled)) return;
  const int source = a.row != nullptr ? a.row[row] : row;
  if (source < 0) return;
  const __nv_bfloat16* const x =
      a.x + (std::int64_t{source} * a.n_groups + group) * a.cols + 4 * lane;

  __nv_bfloat162 v[kBlocksOfWarp][2];
#pragma unroll
  for (int b = 0; b < kBlocksOfWarp; ++b) {
    const int c = (first + b) * kBlockCols;
    if (a.wide && c + 4 * lane < a.cols) {
      const uint2 loaded = *reinterpret_cast<const uint2*>(x + c);
      memcpy(v[b], &loaded, 8);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool inside = c + 4 * lane + i < a.cols;
        const __nv_bfloat16 value = inside ? x[c + i] : __float2bfloat16_rn(0.0f);
        (i % 2 == 0 ? v[b][i / 2].x : v[b][i / 2].y) = value;
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBlocksOfWarp; ++b) {
    if (first + b >= a.n_blocks) return;
    const std::int64_t block = std::int64_t{group} * a.n_blocks + first + b;
    const auto atom = [&](std::int64_t i) {
      return a.to + (i * (a.packed_rows / 8) + row / 8) * 1024;
    };
    if constexpr (kE4m3) {
      const float2 lo = __bfloat1622float2(v[b][0]), hi = __bfloat1622float2(v[b][1]);
      const float amax =
          warp_max(fmaxf(fmaxf(fabsf(lo.x), fabsf(lo.y)), fmaxf(fabsf(hi.x), fabsf(hi.y))));
      const int e = isfinite(amax) ? e4m3_scale_exponent(amax) : 0;
      const float inverse = exp2_int(-e);
      const std::uint32_t codes = std::uint32_t{to_e4m3(lo.x * inverse)} |
                                  std::uint32_t{to_e4m3(lo.y * inverse)} << 8 |
                                  std::uint32_t{to_e4m3(hi.x * inverse)} << 16 |
                                  std::uint32_t{to_e4m3(hi.y * inverse)} << 24;
      const int unit = e4m3_unit<F>(lane);
      *reinterpret_cast<std::uint32_t*>(atom(block) + wgmma_swizzle(row % 8, unit / 4) +
                                        unit % 4 * 4) = codes;
      if (lane == 0) a.scale[block * a.packed_rows + row] = exp2_int(e);
    } else {
      const int j = fragment_chunk<F>(lane / 2), t = j % 4;
      const int step = 2 * (j / 4) + lane % 2;
      std::byte* const to = atom(2 * block + step / 4);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        *reinterpret_cast<__nv_bfloat162*>(to + wgmma_swizzle(row % 8, 2 * (step % 4) + u) +
                                           4 * t) = v[b][u];
      }
    }
  }
}

template <class... T>
void launch_pack(Stream& stream, const Pack& p, void (*kernel)(T...)) {
  const std::int64_t warps =
      std::int64_t{p.n_rows} * p.n_groups * ceil_div(p.n_blocks, kBlocksOfWarp);
  launch(stream, "matmul_pack", kernel, {dim3(blocks_for(warps * 32, kThreads)), dim3(kThreads)},
         p);
}

}  // namespace

PackedInput pack_input(Stream& stream, const PackSource& from, WeightFormat format,
                       Packing packing) {
  const bool e4m3 = packing == Packing::e4m3;
  HADAL_CHECK(from.x.dim(1) % from.n_groups == 0);
  Pack p{};
  p.x = data<const __nv_bfloat16>(from.x);
  p.row = from.row;
  p.n_filled = from.n_filled;
  p.n_rows = from.n_rows;
  p.packed_rows = static_cast<int>(ceil_div(from.n_rows, kNarrowRows) * kNarrowRows);
  p.n_groups = from.n_groups;
  p.cols = static_cast<int>(from.x.dim(1) / from.n_groups);
  p.n_blocks = static_cast<int>(ceil_div(p.cols, kBlockCols));
  p.wide = p.cols % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.x) % 8 == 0;
  const std::int64_t rows = std::int64_t{p.n_groups} * p.n_blocks * p.packed_rows;

  PackedInput packed;
  packed.rows = p.packed_rows;
  packed.memory = stream.cuda().scratch(rows * (e4m3 ? 128 : 256));
  p.to = packed.memory.bytes();
  if (e4m3) {
    packed.scale_memory = stream.cuda().memory().empty({rows}, DType::f32);
    p.scale = packed.scale_memory.data<float>();
  }
  if (rows == 0) return packed;
  switch (format) {
    case WeightFormat::bf16:
      HADAL_CHECK(!e4m3);
      launch_pack(stream, p, pack_kernel<WeightFormat::bf16, false>);
      break;
    case WeightFormat::fp8:
      launch_pack(
          stream, p,
          e4m3 ? pack_kernel<WeightFormat::fp8, true> : pack_kernel<WeightFormat::fp8, false>);
      break;
    case WeightFormat::fp4:
      launch_pack(
          stream, p,
          e4m3 ? pack_kernel<WeightFormat::fp4, true> : pack_kernel<WeightFormat::fp4, false>);
      break;
    case WeightFormat::f32:
      HADAL_CHECK(format != WeightFormat::f32);
  }
  return packed;
}

}  // namespace hadal::kernels::cuda
