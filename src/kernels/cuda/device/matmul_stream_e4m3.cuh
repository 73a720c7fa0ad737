// Few tokens, as E4M3: weights stream from memory through registers once, as in matmul_stream.cuh.
//
// A block of threads has 16 weight rows (of both matrices of a pair). An instruction multiplies 64
// rows: each of a warpgroup's four warps gives it 16 rows by another block of 128 columns, and
// their four blocks of the tokens stand side by side as its columns, of which a warp keeps its own:
// three quarters of the products go unused, and cost nothing beside the loads. Of a pair one
// warpgroup has the gate and one the up matrix; else they take turns, four blocks each. Tokens come
// to shared memory whole, by bulk copies of the rows that exist. Every block's product waits in
// shared memory for one thread an output, which adds them up in order: the chain of
// e4m3_fragment.cuh, however many warps there are.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/e4m3_fragment.cuh"
#include "kernels/cuda/device/matmul_stream.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace hadal::kernels::cuda {

// Where things lie in shared memory, from a multiple of 1,024 bytes on.
struct StreamE4m3Layout {
  int partials, factors, barriers, tables, end;
};
inline constexpr int kStreamMostBarriers = 64;
__host__ __device__ constexpr StreamE4m3Layout stream_e4m3_layout(int n_blocks, int token_tiles,
                                                                  int n_matrices) {
  StreamE4m3Layout at{};
  at.partials = (n_blocks + 3) / 4 * 4 * token_tiles * 1024;
  at.factors = at.partials + n_matrices * n_blocks * 8 * token_tiles * kPartialPitch * 4;
  at.barriers = at.factors + n_matrices * n_blocks * kStreamWeightRows * 4;
  at.tables = at.barriers + kStreamMostBarriers * 8;
  at.end = at.tables + kFp4Tables * 8;
  return at;
}

template <WeightFormat F, int kTokenTiles, bool kPair>
__global__ __launch_bounds__(kStreamThreads, 2) void stream_e4m3_kernel(const Matmul m) {
  constexpr int kDepth = F == WeightFormat::fp4 ? 4 : 3;  // blocks of a warp in flight
  constexpr int kTokens = 8 * kTokenTiles, kN = 4 * kTokens;
  constexpr int kMatrices = kPair ? 2 : 1, kBlocksAtOnce = kPair ? 4 : 8;
  extern __shared__ std::byte shared_bytes[];
  std::byte* const shared = shared_bytes + (-shared_address(shared_bytes) & 1023u);
  Place place;
  if (!find_place<kPair>(m, place)) return;
  const WeightShape& s = m.shape;
  const int n_blocks = (s.cols + kBlockCols - 1) / kBlockCols;
  const int n_turns = (n_blocks + kBlocksAtOnce - 1) / kBlocksAtOnce;
  const StreamE4m3Layout at = stream_e4m3_layout(n_blocks, kTokenTiles, kMatrices);
  auto* const partials = reinterpret_cast<float*>(shared + at.partials);
  auto* const factors = reinterpret_cast<float*>(shared + at.factors);
  auto* const barriers = reinterpret_cast<std::uint64_t*>(shared + at.barriers);
  auto* const tables = reinterpret_cast<uint2*>(shared + at.tables);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, t = lane % 4;
  const int group = thread / 128, warp = thread % 128 / 32;
  const int row_base = static_cast<int>(blockIdx.x) * kStreamWeightRows;

  const int matrix = kPair ? group : 0;
  const int first = kPair ? 0 : 4 * group;  // block of this warpgroup's first warp
  const Matrix w = matrix == 0 ? place.weight : place.up;
  const std::byte *rows[2], *scales[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int local = row_base + g + 8 * h;
    const int row = place.first_weight_row + local;
    rows[h] = local < place.rows ? w.data + row * s.row_bytes : nullptr;
    scales[h] = scale_row(s, w.scale, row);
  }
  // A block beyond the columns loads nothing and is zeros.
  StreamChunks<F> buffer[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    load_block<F>(buffer[d], s, rows, scales, d * kBlocksAtOnce + first + warp, t);
  }

  if (thread < n_turns) {
    barrier_init(shared_address(barriers + thread), 1);
    barrier_init_done();
    const int blocks = min(kBlocksAtOnce, n_blocks - thread * kBlocksAtOnce);
    barrier_expect(shared_address(barriers + thread), blocks * place.n_rows * 128);
  }
  if constexpr (F == WeightFormat::fp4) fill_fp4_tables(tables, thread);
  __syncthreads();
  const std::int64_t x_block = std::int64_t{blockIdx.z} * n_blocks;
  for (int block = thread; block < n_blocks; block += kStreamThreads) {
    const std::byte* const from = m.packed + ((x_block + block) * m.packed_rows + place.row0) * 128;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const int n = min(8, place.n_rows - 8 * j);
      if (n > 0) {
        copy_bulk(shared_address(shared + (block * kTokenTiles + j) * 1024), from + j * 1024,
                  n * 128, shared_address(barriers + block / kBlocksAtOnce));
      }
    }
  }

  for (int base = 0; base < n_turns; base += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int turn = base + d;
      const int group_block = turn * kBlocksAtOnce + first, block = group_block + warp;
      if (group_block >= n_blocks) break;
      std::uint32_t a[4][4];
      if constexpr (F == WeightFormat::fp4) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int scale = static_cast<int>(buffer[d].scale[h]);
          const int largest = fp4_block_scale(scale);
          put_operands(a, h, buffer[d].raw[h][0], tables[min(largest - scale, kFp4Tables - 1)]);
          if (t == 0 && block < n_blocks) {
            factors[(matrix * n_blocks + block) * kStreamWeightRows + g + 8 * h] =
                fp4_block_factor(largest);
          }
        }
      } else {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int h = 0; h < 2; ++h) put_operand(a[2 * q], a[2 * q + 1], h, buffer[d].raw[h][q]);
        }
      }
      load_block<F>(buffer[d], s, rows, scales, block + kDepth * kBlocksAtOnce, t);

      barrier_wait(shared_address(barriers + turn), 0);
      float acc[kN / 2] = {};
      const std::uint64_t tokens =
          wgmma_rows(shared_address(shared + group_block * (kTokenTiles * 1024)));
      wgmma_arrive();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        Wgmma<kN>::e4m3(acc, a[step], tokens + 2 * step, step > 0);
      }
      wgmma_commit();
      wgmma_wait_for(acc, a);
      if (block >= n_blocks) continue;
      float* const to = partials + (matrix * n_blocks + block) * (kTokens * kPartialPitch);
#pragma unroll
      for (int own = 0; own < 4; ++own) {
        if (own != warp) continue;
#pragma unroll
        for (int i = 0; i < 4 * kTokenTiles; ++i) {
          to[(i / 4 * 8 + 2 * t + i % 2) * kPartialPitch + g + i / 2 % 2 * 8] =
              acc[4 * kTokenTiles * own + i];
        }
      }
    }
  }
  __syncthreads();

  ClampTally tally;
  const int token = thread / kStreamWeightRows, local = row_base + thread % kStreamWeightRows;
  if (token < min(kTokens, place.n_rows) && local < place.rows) {
    const float* const token_factor = m.packed_scale + x_block * m.packed_rows + place.row0 + token;
    float total[2] = {};
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
      const float* from = partials + i * n_blocks * (kTokens * kPartialPitch) +
                          token * kPartialPitch + thread % kStreamWeightRows;
      const float* const row_factor = factors + i * n_blocks * kStreamWeightRows + thread % 16;
      const std::byte* const row_scales = scale_row(s, i == 0 ? place.weight.scale : place.up.scale,
                                                    place.first_weight_row + local);
#pragma unroll 8
      for (int block = 0; block < n_blocks; ++block) {
        const float factor = F == WeightFormat::fp8 ? fp8_scale(s, row_scales, block)
                                                    : row_factor[block * kStreamWeightRows];
        total[i] =
            fmaf(from[block * (kTokens * kPartialPitch)],
                 __fmul_rn(factor, token_factor[std::int64_t{block} * m.packed_rows]), total[i]);
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
