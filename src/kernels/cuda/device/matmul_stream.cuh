// Few tokens: weights stream from memory through registers once, and nothing else counts.
//
// A block of threads has 16 weight rows (of both matrices of a pair). Its warps take the blocks of
// 128 columns in turn, each with the loads of its next ones in flight, and leave every block's
// product in shared memory. Then one thread an output adds them up in ascending order: the chain of
// matmul.cuh, however many warps there are.
#pragma once

#include "kernels/cuda/device/matmul_fragment.cuh"
#include "kernels/cuda/device/matmul_launch.cuh"

namespace hadal::kernels::cuda {

__device__ __forceinline__ uint4 load_streaming(const std::byte* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// What a thread holds of a block of columns of rows g and g + 8.
template <WeightFormat F>
struct StreamChunks {
  uint4 raw[2][kChunks<F>];
  std::uint32_t scale[2];
};

template <WeightFormat F>
__device__ __forceinline__ void load_block(StreamChunks<F>& to, const WeightShape& s,
                                           const std::byte* const (&rows)[2],
                                           const std::byte* const (&scales)[2], int block, int t) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int q = 0; q < kChunks<F>; ++q) {
      const std::int64_t at = std::int64_t{block} * kBlockBytes<F> + (4 * q + t) * 16;
      if (rows[h] == nullptr || at >= s.row_bytes) {
        to.raw[h][q] = {0, 0, 0, 0};
      } else if (s.aligned && at + 16 <= s.row_bytes) {
        to.raw[h][q] = load_streaming(rows[h] + at);
      } else {
        to.raw[h][q] = load_chunk_slowly(rows[h], at, s.row_bytes);
      }
    }
    if constexpr (F == WeightFormat::fp4) {
      to.scale[h] = rows[h] == nullptr ? 127 : fp4_scale(s, scales[h], block * 4 + t);
    }
  }
}

template <WeightFormat F, int kTokenTiles, bool kPair>
__global__ __launch_bounds__(kStreamThreads, 2) void stream_kernel(const Matmul m) {
  // Bytes in flight of a warp: depth * 16 rows * a block of columns.
  constexpr int kDepth = F == WeightFormat::fp4 ? 4 : F == WeightFormat::fp8 ? 3 : 2;
  constexpr int kTokens = 8 * kTokenTiles;
  extern __shared__ float partials[];  // [matrix][block of columns][kTokens][kPartialPitch]
  Place place;
  if (!find_place<kPair>(m, place)) return;
  const WeightShape& s = m.shape;
  const int n_blocks = (s.cols + kBlockCols - 1) / kBlockCols;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const int row_base = static_cast<int>(blockIdx.x) * kStreamWeightRows;

  const int matrix = kPair ? warp % 2 : 0;
  const int first = kPair ? warp / 2 : warp;
  constexpr int kStep = kStreamThreads / 32 / (kPair ? 2 : 1);
  const Matrix w = matrix == 0 ? place.weight : place.up;
  const std::byte *rows[2], *scales[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int local = row_base + g + 8 * h;
    const int row = place.first_weight_row + local;
    rows[h] = local < place.rows ? w.data + row * s.row_bytes : nullptr;
    scales[h] = scale_row(s, w.scale, row);
  }
  const __nv_bfloat16* tokens[kTokenTiles];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    tokens[j] = 8 * j + g < place.n_rows
                    ? static_cast<const __nv_bfloat16*>(m.x) + x_offset_of(m, place, 8 * j + g)
                    : nullptr;
  }

  StreamChunks<F> buffer[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    const int block = first + d * kStep;
    if (block < n_blocks) load_block<F>(buffer[d], s, rows, scales, block, t);
  }
  for (int base = first; base < n_blocks; base += kDepth * kStep) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int block = base + d * kStep;
      if (block >= n_blocks) break;
      uint4 x[kTokenTiles][4];
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          x[j][p] = tokens[j] == nullptr
                        ? uint4{0, 0, 0, 0}
                        : *reinterpret_cast<const uint4*>(tokens[j] + block * kBlockCols +
                                                          8 * source_chunk<F>(p, t));
        }
      }
      float acc[kTokenTiles][4] = {};
      Fp4Table table[2];
      if constexpr (F == WeightFormat::fp4) {
        table[0].fill(buffer[d].scale[0]);
        table[1].fill(buffer[d].scale[1]);
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        std::uint32_t v[2][4], a0[4], a1[4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          decode_pair<F>(buffer[d].raw[h][p / kPairsPerChunk<F>], p % kPairsPerChunk<F>, table[h],
                         v[h]);
        }
        weight_operands(v, a0, a1);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          mma_bf16(acc[j], a0, x[j][p].x, x[j][p].y);
          mma_bf16(acc[j], a1, x[j][p].z, x[j][p].w);
        }
      }
      const int next = block + kDepth * kStep;
      if (next < n_blocks) load_block<F>(buffer[d], s, rows, scales, next, t);
      float* to = partials + (matrix * n_blocks + block) * (kTokens * kPartialPitch);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          to[(8 * j + 2 * t + i % 2) * kPartialPitch + g + i / 2 * 8] = acc[j][i];
        }
      }
    }
  }
  __syncthreads();

  ClampTally tally;
  const int token = static_cast<int>(threadIdx.x) / kStreamWeightRows;
  const int local = row_base + static_cast<int>(threadIdx.x) % kStreamWeightRows;
  if (token < min(kTokens, place.n_rows) && local < place.rows) {
    float total[2] = {};
#pragma unroll
    for (int i = 0; i < (kPair ? 2 : 1); ++i) {
      const float* from = partials + i * n_blocks * (kTokens * kPartialPitch) +
                          token * kPartialPitch + threadIdx.x % kStreamWeightRows;
      const std::byte* const row_scales = scale_row(s, i == 0 ? place.weight.scale : place.up.scale,
                                                    place.first_weight_row + local);
#pragma unroll 8
      for (int block = 0; block < n_blocks; ++block) {
        const float factor = F == WeightFormat::fp8 ? fp8_scale(s, row_scales, block) : 1.0f;
        total[i] = fmaf(from[block * (kTokens * kPartialPitch)], factor, total[i]);
      }
    }
    if constexpr (kPair)
      put_swiglu(m, place, token, local, total[0], total[1], tally);
    else
      put_y(m, place, token, local, total[0]);
  }
  if constexpr (kPair) {
    if (m.clamps != nullptr) tally.add_to(m.clamps);
  }
}

}  // namespace hadal::kernels::cuda
