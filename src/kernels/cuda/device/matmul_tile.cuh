// Many tokens: tiles of 128 weight rows times kN tokens, both through shared memory in three
// stages of 128 columns, the weights as they are stored.
//
// Eight warps, four along the weight rows and two along the tokens, each with two tiles of 16 rows
// (of a pair: 16 rows of the gate and the same 16 of the up matrix) times kN / 16 tiles of 8
// tokens. Weights are decoded as they are read from shared memory.
#pragma once

#include "kernels/cuda/device/matmul_fragment.cuh"

namespace hadal::kernels::cuda {

inline constexpr int kTileThreads = 256, kTileWeightRows = 128, kTileStages = 3;

template <WeightFormat F, int kN>
struct TileStage {
  std::byte weights[kTileWeightRows * kBlockBytes<F>];
  std::byte tokens[kN * kBlockCols * 2];
};
template <WeightFormat F, int kN>
struct TileShared {
  TileStage<F, kN> stage[kTileStages];
  const std::byte* weight_row[kTileWeightRows];  // null: beyond the matrix
  const __nv_bfloat16* token[kN];                // null: beyond the tile
};

// `valid` false: zeros.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <WeightFormat F, int kN>
__device__ __forceinline__ void load_stage(TileShared<F, kN>& shared, const WeightShape& s,
                                           int block) {
  constexpr int kBytes = kBlockBytes<F>, kRowChunks = kBytes / 16;
  TileStage<F, kN>& stage = shared.stage[block % kTileStages];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = thread; i < kTileWeightRows * kRowChunks; i += kTileThreads) {
    const int r = i / kRowChunks, c = i % kRowChunks;
    const std::byte* row = shared.weight_row[r];
    const std::int64_t at = std::int64_t{block} * kBytes + c * 16;
    std::byte* to = stage.weights + swizzled<kBytes>(r, c);
    if (row == nullptr || at >= s.row_bytes) {
      *reinterpret_cast<uint4*>(to) = {0, 0, 0, 0};
    } else if (s.aligned && at + 16 <= s.row_bytes) {
      copy_async(to, row + at, true);
    } else {
      *reinterpret_cast<uint4*>(to) = load_chunk_slowly(row, at, s.row_bytes);
    }
  }
#pragma unroll
  for (int i = thread; i < kN * 16; i += kTileThreads) {
    const int n = i / 16, j = i % 16;
    const __nv_bfloat16* row = shared.token[n];
    std::byte* to = stage.tokens + swizzled<256>(n, fragment_chunk<F>(j));
    if (row == nullptr)
      *reinterpret_cast<uint4*>(to) = {0, 0, 0, 0};
    else
      copy_async(to, row + block * kBlockCols + j * 8, true);
  }
}

template <WeightFormat F, int kN, bool kPair>
__global__ __launch_bounds__(kTileThreads) void tile_kernel(const Matmul m) {
  constexpr int kTokenTiles = kN / 16;  // of a warp
  constexpr int kOutputRows = kPair ? kTileWeightRows / 2 : kTileWeightRows;
  extern __shared__ __align__(128) std::byte shared_bytes[];
  auto& shared = *reinterpret_cast<TileShared<F, kN>*>(shared_bytes);
  Place place;
  if (!find_place<kPair>(m, place)) return;
  const WeightShape& s = m.shape;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4, warp_m = warp % 4, warp_n = warp / 4;
  const int row_base = static_cast<int>(blockIdx.x) * kOutputRows;
  const int n_blocks = (s.cols + kBlockCols - 1) / kBlockCols;

  for (int r = thread; r < kTileWeightRows; r += kTileThreads) {
    const bool is_up = kPair && r / 16 % 2 == 1;
    const int local = row_base + (kPair ? r / 32 * 16 + r % 16 : r);
    const std::byte* data = is_up ? place.up.data : place.weight.data;
    shared.weight_row[r] =
        local < place.rows ? data + (place.first_weight_row + local) * s.row_bytes : nullptr;
  }
  for (int n = thread; n < kN; n += kTileThreads) {
    shared.token[n] = n < place.n_rows
                          ? static_cast<const __nv_bfloat16*>(m.x) + x_offset_of(m, place, n)
                          : nullptr;
  }

  // Output row of tile i, half h, in the place, and its scales (some row's, if beyond).
  int local[2][2];
  const std::byte* scales[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      local[i][h] = row_base + (kPair ? 16 * warp_m : 32 * warp_m + 16 * i) + g + 8 * h;
      scales[i][h] = scale_row(s, kPair && i == 1 ? place.up.scale : place.weight.scale,
                               place.first_weight_row + min(local[i][h], place.rows - 1));
    }
  }
  // FP8: the factor of a block, as bits. FP4: the byte of this thread's group of 32 columns.
  const auto scale_of = [&](int i, int h, int block) -> std::uint32_t {
    if constexpr (F == WeightFormat::fp8) {
      return __float_as_uint(fp8_scale(s, scales[i][h], block));
    } else if constexpr (F == WeightFormat::fp4) {
      return fp4_scale(s, scales[i][h], block * 4 + t);
    } else {
      return 0;
    }
  };

  float total[2][kTokenTiles][4] = {};
  std::uint32_t next_scale[2][2] = {};
  __syncthreads();
#pragma unroll
  for (int block = 0; block < kTileStages - 1; ++block) {
    if (block < n_blocks) load_stage<F, kN>(shared, s, block);
    commit_copies();
  }
  if (n_blocks > 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) next_scale[i / 2][i % 2] = scale_of(i / 2, i % 2, 0);
  }
  for (int block = 0; block < n_blocks; ++block) {
    wait_for_copies<kTileStages - 2>();
    __syncthreads();
    if (block + kTileStages - 1 < n_blocks) {
      load_stage<F, kN>(shared, s, block + kTileStages - 1);
    }
    commit_copies();
    std::uint32_t scale[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scale[i / 2][i % 2] = next_scale[i / 2][i % 2];
      if (block + 1 < n_blocks) next_scale[i / 2][i % 2] = scale_of(i / 2, i % 2, block + 1);
    }

    const TileStage<F, kN>& stage = shared.stage[block % kTileStages];
    float acc[2][kTokenTiles][4] = {};
    uint4 raw[2][2];
    Fp4Table table[2][2];
    if constexpr (F == WeightFormat::fp4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) table[i / 2][i % 2].fill(scale[i / 2][i % 2]);
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      std::uint32_t a[2][2][4];  // [tile][step]
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t v[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (p % kPairsPerChunk<F> == 0) {
            const int r = 32 * warp_m + 16 * i + g + 8 * h;
            raw[i][h] = *reinterpret_cast<const uint4*>(
                stage.weights + swizzled<kBlockBytes<F>>(r, 4 * (p / kPairsPerChunk<F>)+t));
          }
          decode_pair<F>(raw[i][h], p % kPairsPerChunk<F>, table[i][h], v[h]);
        }
        weight_operands(v, a[i][0], a[i][1]);
      }
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const int n = warp_n * (kN / 2) + 8 * j + g;
        const uint4 x = *reinterpret_cast<const uint4*>(stage.tokens + swizzled<256>(n, 4 * p + t));
        mma_bf16(acc[0][j], a[0][0], x.x, x.y);
        mma_bf16(acc[1][j], a[1][0], x.x, x.y);
        mma_bf16(acc[0][j], a[0][1], x.z, x.w);
        mma_bf16(acc[1][j], a[1][1], x.z, x.w);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float factor = F == WeightFormat::fp8 ? __uint_as_float(scale[i][e / 2]) : 1.0f;
          total[i][j][e] = fmaf(acc[i][j][e], factor, total[i][j][e]);
        }
      }
    }
  }
  wait_for_copies<0>();

  ClampTally tally;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = warp_n * (kN / 2) + 8 * j + 2 * t + e % 2;
      if (token >= place.n_rows) continue;
      if constexpr (kPair) {
        if (local[0][e / 2] < place.rows) {
          put_swiglu(m, place, token, local[0][e / 2], total[0][j][e], total[1][j][e], tally);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (local[i][e / 2] < place.rows) {
            put_y(m, place, token, local[i][e / 2], total[i][j][e]);
          }
        }
      }
    }
  }
  if constexpr (kPair) {
    if (m.clamps != nullptr) tally.add_to(m.clamps);
  }
}

}  // namespace hadal::kernels::cuda
