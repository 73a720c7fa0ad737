// Many tokens, packed: tiles of 128 weight rows times up to 128 tokens on wgmma, one block of
// threads a multiprocessor, which goes from tile to tile.
//
// One warpgroup brings blocks of 128 columns into a ring of stages, ahead of the others and across
// tiles: tokens by one or two bulk copies (packing made them one piece, swizzled already), weights
// as they are stored, 16 bytes a thread. Two warpgroups have 64 weight rows each; weights pass
// through registers into the instruction, FP4 and bf16-bound FP8 decoded on the way, so that shared
// memory, the narrowest place at these rates, is read once for them. Of a pair, each warp's 16 rows
// are 8 of the gate and the same 8 of the up matrix, so both values of an output meet in a thread.
//
// A tile's tokens are cut to the smallest instruction that holds them. A warpgroup decodes a block
// while the block before is multiplied, and adds that to its totals while the other warpgroup
// multiplies.
//
// Time a block of columns, per multiprocessor of 4 schedulers, tile 128 x 128, E4M3: tensor cores
// 512 cycles, issue slots about 290 (FP8) or 450 (FP4), shared memory 56 KiB of 128 B/cycle = 450,
// from the L2 cache 24 to 32 KiB. Of bf16: 1,024 cycles, 200 to 500 slots, 48 to 64 KiB.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/e4m3_fragment.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace hadal::kernels::cuda {

inline constexpr int kWgmmaThreads = 384, kWgmmaConsumers = 256, kWgmmaWeightRows = 128;

// Tokens and weights multiplied as E4M3, or as bf16.
template <WeightFormat F, bool kE4m3>
struct WgmmaStage {
  static constexpr int kHalves = kE4m3 ? 1 : 2;
  std::byte tokens[kHalves][kTileRows * 128];
  std::byte weights[kWgmmaWeightRows * kBlockBytes<F>];
  float token_factor[kE4m3 ? kTileRows : 1];
};
// Tokens' rows of 16 outputs on their way out, of one warp.
inline constexpr int kOutPitch = 48;
template <WeightFormat F, bool kE4m3>
struct alignas(1024) WgmmaShared {
  static constexpr int kBudget = 216 * 1024;
  struct alignas(1024) Stage : WgmmaStage<F, kE4m3> {};
  static constexpr int kStages =
      kBudget / static_cast<int>(sizeof(Stage)) < 6 ? kBudget / static_cast<int>(sizeof(Stage)) : 6;
  Stage stage[kStages];
  std::byte out[kWgmmaConsumers / 32][16 * kOutPitch];
  std::uint64_t full[kStages], empty[kStages];
  uint2 fp4_tables[kFp4Tables];
};

struct WgmmaTile {
  Place place;
  int row_base, group;
};

// How many tiles there are. Tiles of weight rows are neighbours, so that blocks that run together
// share tokens, and weights with the tokens' next tile.
template <bool kPair>
__device__ __forceinline__ int wgmma_tiles(const Matmul& m, int& row_tiles) {
  constexpr int kOutputRows = kPair ? kWgmmaWeightRows / 2 : kWgmmaWeightRows;
  row_tiles = (m.shape.rows / m.n_groups + kOutputRows - 1) / kOutputRows;
  const int token_tiles = m.tiles != nullptr ? *m.n_tiles : (m.n_rows + kTileRows - 1) / kTileRows;
  return row_tiles * token_tiles * m.n_groups;
}
template <bool kPair>
__device__ __forceinline__ WgmmaTile wgmma_tile(const Matmul& m, int index, int row_tiles) {
  WgmmaTile tile;
  Place& p = tile.place;
  int rest = index / row_tiles;
  tile.row_base = index % row_tiles * (kPair ? kWgmmaWeightRows / 2 : kWgmmaWeightRows);
  tile.group = 0;
  if (m.tiles != nullptr) {
    const TokenTile t = m.tiles[rest];
    p.weight = m.weight[t.weight];
    if constexpr (kPair) p.up = m.up[t.weight];
    p.row0 = t.row0;
    p.n_rows = t.n_rows;
  } else {
    const int token_tiles = (m.n_rows + kTileRows - 1) / kTileRows;
    tile.group = rest / token_tiles;
    rest %= token_tiles;
    p.weight = m.weight.first;
    if constexpr (kPair) p.up = m.up.first;
    p.row0 = rest * kTileRows;
    p.n_rows = min(kTileRows, m.n_rows - p.row0);
  }
  p.x_offset = 0;
  p.rows = m.shape.rows / m.n_groups;
  p.first_weight_row = tile.group * p.rows;
  p.y_offset = p.first_weight_row;
  return tile;
}

// ------------------------------------------------------------------ the warpgroup that copies

template <WeightFormat F, bool kE4m3, bool kPair, class Shared>
__device__ __forceinline__ void wgmma_produce(const Matmul& m, Shared& shared, int thread) {
  constexpr int kBytes = kBlockBytes<F>, kRowChunks = kBytes / 16, kThreads = 128;
  constexpr int kHalves = Shared::Stage::kHalves, kRowsAtOnce = kThreads / kRowChunks;
  constexpr int kCopies = kWgmmaWeightRows / kRowsAtOnce;
  // Eight rows at once of a pair are of the gate and of the up matrix in turn.
  constexpr bool kAlternate = kPair && kRowsAtOnce == 8;
  const WeightShape& s = m.shape;
  const int n_blocks = (s.cols + kBlockCols - 1) / kBlockCols;
  const int first_row = thread / kRowChunks, chunk = thread % kRowChunks;
  const std::int64_t row_stride = s.row_bytes * (kAlternate ? 8
                                                 : kPair    ? kRowsAtOnce / 2
                                                            : kRowsAtOnce);
  int row_tiles;
  const int n_tiles = wgmma_tiles<kPair>(m, row_tiles);
  RingPlace<Shared::kStages> ring;
  for (int index = static_cast<int>(blockIdx.x); index < n_tiles;
       index += static_cast<int>(gridDim.x)) {
    const WgmmaTile tile = wgmma_tile<kPair>(m, index, row_tiles);
    const Place& p = tile.place;
    const int row_groups = (p.n_rows + 7) / 8;
    // This thread's first row of both kinds; its rows lie at strides that the compiler knows, so
    // that few registers serve them all.
    const int local = tile.row_base + (kPair ? first_row / 16 * 8 + first_row % 8 : first_row);
    const std::int64_t first_byte = (p.first_weight_row + local) * s.row_bytes + chunk * 16;
    const std::byte* weight = p.weight.data + first_byte;
    const std::byte* up = kPair ? p.up.data + first_byte : nullptr;
    if (kPair && kRowsAtOnce > 8 && first_row / 8 % 2 == 1) weight = up;
    for (int block = 0; block < n_blocks; ++block) {
      auto& stage = shared.stage[ring.stage];
      const std::uint32_t full = shared_address(&shared.full[ring.stage]);
      barrier_wait(shared_address(&shared.empty[ring.stage]), ring.parity ^ 1);
      if (thread == 0) {
        const std::int64_t x_block = std::int64_t{tile.group} * n_blocks + block;
        barrier_expect(full, row_groups * (kHalves * 1024 + (kE4m3 ? 32 : 0)));
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const std::byte* from = m.packed + (x_block * kHalves + half) * m.packed_rows * 128;
          copy_bulk(shared_address(stage.tokens[half]), from + p.row0 * 128, row_groups * 1024,
                    full);
        }
        if constexpr (kE4m3) {
          copy_bulk(shared_address(stage.token_factor),
                    m.packed_scale + x_block * m.packed_rows + p.row0, row_groups * 32, full);
        }
      }
      const std::int64_t at = std::int64_t{block} * kBytes + chunk * 16;
      std::byte* const to = stage.weights + swizzled<kBytes>(first_row, chunk);
      const auto local_step = [](int i) {
        return kPair ? i * kRowsAtOnce / 16 * 8 + i * kRowsAtOnce % 8 : i * kRowsAtOnce;
      };
      const std::byte *from = weight, *from_up = up;
      if (s.aligned) {
        const std::uint32_t to_address = shared_address(to);
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          const bool takes_up = kAlternate && i % 2 == 1;
          const bool inside = local + local_step(i) < p.rows && at < s.row_bytes;
          copy_async(to_address + i * kRowsAtOnce * kBytes,
                     inside ? (takes_up ? from_up : from) : p.weight.data, inside);
          if (!kAlternate || takes_up) from += row_stride, from_up += row_stride;
        }
        barrier_arrive_after_copies(full);
      } else {
#pragma unroll 1
        for (int i = 0; i < kCopies; ++i) {
          const bool takes_up = kAlternate && i % 2 == 1;
          const bool inside = local + local_step(i) < p.rows;
#pragma unroll 1
          for (int b = 0; b < 16; ++b) {
            to[i * kRowsAtOnce * kBytes + b] =
                inside && at + b < s.row_bytes ? (takes_up ? from_up : from)[b] : std::byte{0};
          }
          if (!kAlternate || takes_up) from += row_stride, from_up += row_stride;
        }
        barrier_arrive(full);
      }
      weight += kBytes, up += kPair ? kBytes : 0;
      ring.advance();
    }
  }
}

// ------------------------------------------------------------------ the warpgroups that multiply

// Where a thread of a consumer is, and the weight rows of its two halves.
struct WgmmaThread {
  int warp, g, t;              // of all consumers
  int local[2];                // output rows of the place, beyond it too
  const std::byte* scales[2];  // of the rows, some row's if beyond
};

template <WeightFormat F, bool kE4m3>
struct WgmmaOperands {
  static constexpr int kSteps = kE4m3 ? 4 : 8;
  std::uint32_t a[kSteps][4];
  float factor[2];  // of rows g and g + 8
};

// `scale`: of FP4, the group's bytes of this thread.
template <WeightFormat F, bool kE4m3, class Shared>
__device__ __forceinline__ void wgmma_operands(WgmmaOperands<F, kE4m3>& to, const Shared& shared,
                                               int stage, const WeightShape& s,
                                               const WgmmaThread& me, const int (&scale)[2],
                                               int block) {
  constexpr int kBytes = kBlockBytes<F>;
  const std::byte* const weights = shared.stage[stage].weights;
  const int r = 16 * me.warp + me.g;
  uint4 raw[2][kChunks<F>];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int q = 0; q < kChunks<F>; ++q) {
      raw[h][q] =
          *reinterpret_cast<const uint4*>(weights + swizzled<kBytes>(r + 8 * h, 4 * q + me.t));
    }
  }
  if constexpr (kE4m3) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (F == WeightFormat::fp4) {
        const int largest = fp4_block_scale(scale[h]);
        const uint2 table = shared.fp4_tables[min(largest - scale[h], kFp4Tables - 1)];
        put_operands(to.a, h, raw[h][0], table);
        to.factor[h] = fp4_block_factor(largest);
      } else {
#pragma unroll
        for (int q = 0; q < 2; ++q) put_operand(to.a[2 * q], to.a[2 * q + 1], h, raw[h][q]);
        to.factor[h] = fp8_scale(s, me.scales[h], block);
      }
    }
  } else {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      std::uint32_t v[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        decode_pair<F>(raw[h][p / kPairsPerChunk<F>], p % kPairsPerChunk<F>, Fp4Table{}, v[h]);
      }
      weight_operands(v, to.a[2 * p], to.a[2 * p + 1]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      to.factor[h] = F == WeightFormat::fp8 ? fp8_scale(s, me.scales[h], block) : 1.0f;
    }
  }
}

// Issues the products of a block; they run until wgmma_wait.
template <int kN, WeightFormat F, bool kE4m3, class Shared>
__device__ __forceinline__ void wgmma_block(float (&acc)[kN / 2],
                                            const WgmmaOperands<F, kE4m3>& from,
                                            const Shared& shared, int stage) {
  wgmma_arrive();
#pragma unroll
  for (int step = 0; step < WgmmaOperands<F, kE4m3>::kSteps; ++step) {
    const std::uint64_t rows =
        wgmma_rows(shared_address(shared.stage[stage].tokens[step / 4])) + 2 * (step % 4);
    if constexpr (kE4m3)
      Wgmma<kN>::e4m3(acc, from.a[step], rows, step > 0);
    else
      Wgmma<kN>::bf16(acc, from.a[step], rows, step > 0);
  }
  wgmma_commit();
}

template <int kN, bool kE4m3, class Shared>
__device__ __forceinline__ void wgmma_add(float (&total)[kN / 2], const float (&acc)[kN / 2],
                                          const float (&factor)[2], const Shared& shared, int stage,
                                          int t) {
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    float2 token{1.0f, 1.0f};
    if constexpr (kE4m3) {
      token = *reinterpret_cast<const float2*>(shared.stage[stage].token_factor + 8 * j + 2 * t);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float f0 = kE4m3 ? __fmul_rn(factor[h], token.x) : factor[h];
      const float f1 = kE4m3 ? __fmul_rn(factor[h], token.y) : factor[h];
      total[4 * j + 2 * h] = fmaf(acc[4 * j + 2 * h], f0, total[4 * j + 2 * h]);
      total[4 * j + 2 * h + 1] = fmaf(acc[4 * j + 2 * h + 1], f1, total[4 * j + 2 * h + 1]);
    }
  }
}

// Eight tokens' 8x8 outputs of a warp each, to rows of 16 bytes of shared memory.
__device__ __forceinline__ void store_transposed(const std::byte* row,
                                                 const std::uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}
__device__ __forceinline__ std::uint32_t bf16_pair(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&v);
}

// Writes what a warp has. bf16 goes through shared memory, to be written 16 bytes of a token at a
// time where the warp's rows all exist and lie so.
template <int kN, bool kPair>
__device__ __forceinline__ void wgmma_write(const Matmul& m, const Place& p, const WgmmaThread& me,
                                            float (&total)[kN / 2], std::byte* out,
                                            ClampTally& tally) {
  constexpr int kRows = kPair ? 8 : 16;  // of a warp
  if constexpr (kPair) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = 8 * j + 2 * me.t + i;
        if (token < p.n_rows && me.local[0] < p.rows) {
          total[4 * j + i] = swiglu(m, p, token, total[4 * j + i], total[4 * j + 2 + i], tally);
        }
      }
    }
  }
  const int first = me.local[0] - me.g;
  const std::int64_t at = p.row0 * m.y_pitch + p.y_offset + first;
  const bool wide = !m.y_f32 && first + kRows <= p.rows && at % 8 == 0 && m.y_pitch % 8 == 0 &&
                    reinterpret_cast<std::uintptr_t>(m.y) % 16 == 0;
  if (!wide) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < (kPair ? 2 : 4); ++e) {
        const int token = 8 * j + 2 * me.t + e % 2;
        if (token < p.n_rows && me.local[e / 2] < p.rows) {
          put_y(m, p, token, me.local[e / 2], total[4 * j + e]);
        }
      }
    }
    return;
  }
  auto* const y = static_cast<__nv_bfloat16*>(m.y) + at;
  const int lane = 4 * me.g + me.t;
  constexpr int kTiles = kPair ? 4 : 2;  // of 8 tokens at once
#pragma unroll
  for (int j = 0; j < kN / 8; j += kTiles) {
    std::uint32_t v[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = j + (kPair ? i : i / 2), h = kPair ? 0 : i % 2;
      if (tile < kN / 8) v[i] = bf16_pair(total[4 * tile + 2 * h], total[4 * tile + 2 * h + 1]);
    }
    // Lane l names row l % 8 of matrix l / 8.
    const int named =
        kPair ? lane * 16 : (lane / 16 * 8 + lane % 8) * kOutPitch + lane / 8 % 2 * 16;
    store_transposed(out + named, v);
    __syncwarp();
    const int token = 8 * j + (kPair ? lane : lane / 2), piece = kPair ? 0 : lane % 2;
    const uint4 row = *reinterpret_cast<const uint4*>(
        out + (kPair ? lane * 16 : lane / 2 * kOutPitch + piece * 16));
    if (token < p.n_rows) *reinterpret_cast<uint4*>(y + token * m.y_pitch + 8 * piece) = row;
    __syncwarp();
  }
}

template <int kN, WeightFormat F, bool kE4m3, bool kPair, class Shared>
__device__ __forceinline__ void wgmma_consume_tile(const Matmul& m, Shared& shared, const Place& p,
                                                   const WgmmaThread& me,
                                                   RingPlace<Shared::kStages>& ring,
                                                   ClampTally& tally) {
  const WeightShape& s = m.shape;
  const int n_blocks = (s.cols + kBlockCols - 1) / kBlockCols;
  // The bytes of FP4's scales are needed to decode: they are loaded one block earlier.
  int next_scale[2] = {};
  const auto load_scales = [&](int block) {
    if constexpr (F == WeightFormat::fp4) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        next_scale[h] = static_cast<int>(fp4_scale(s, me.scales[h], block * 4 + me.t));
      }
    }
  };
  using Operands = WgmmaOperands<F, kE4m3>;
  const auto decode = [&](Operands& to, int stage, int block) {
    const int scale[2] = {next_scale[0], next_scale[1]};
    load_scales(block + 1);
    wgmma_operands<F, kE4m3>(to, shared, stage, s, me, scale, block);
  };
  const auto wait_full = [&](const RingPlace<Shared::kStages>& at) {
    barrier_wait(shared_address(&shared.full[at.stage]), at.parity);
  };
  const auto release = [&](int stage) {
    __syncwarp();
    if (me.g == 0 && me.t == 0) barrier_arrive(shared_address(&shared.empty[stage]));
  };

  float total[kN / 2] = {}, acc[kN / 2] = {};
  load_scales(0);
  if constexpr (kE4m3) {
    // Two sets of operands: one multiplies, one is decoded.
    Operands operands[2];
    const auto step = [&](int block, const Operands& now, Operands& next) {
      const int stage = ring.stage;
      wgmma_block<kN>(acc, now, shared, stage);
      ring.advance();
      if (block + 1 < n_blocks) {
        wait_full(ring);
        decode(next, ring.stage, block + 1);
      }
      wgmma_wait_for(acc, now.a);
      wgmma_add<kN, kE4m3>(total, acc, now.factor, shared, stage, me.t);
      release(stage);
    };
    if (n_blocks > 0) {
      wait_full(ring);
      decode(operands[0], ring.stage, 0);
    }
    for (int block = 0; block < n_blocks; block += 2) {
      step(block, operands[0], operands[1]);
      if (block + 1 < n_blocks) step(block + 1, operands[1], operands[0]);
    }
  } else {
    for (int block = 0; block < n_blocks; ++block) {
      Operands operands;
      wait_full(ring);
      decode(operands, ring.stage, block);
      wgmma_block<kN>(acc, operands, shared, ring.stage);
      wgmma_wait_for(acc, operands.a);
      wgmma_add<kN, kE4m3>(total, acc, operands.factor, shared, ring.stage, me.t);
      release(ring.stage);
      ring.advance();
    }
  }
  wgmma_write<kN, kPair>(m, p, me, total, shared.out[me.warp], tally);
}

template <WeightFormat F, bool kE4m3, bool kPair, class Shared>
__device__ __forceinline__ void wgmma_consume(const Matmul& m, Shared& shared, int thread) {
  constexpr int kOutputRows = kPair ? 8 : 16;  // of a warp
  WgmmaThread me;
  me.warp = thread / 32, me.g = thread % 32 / 4, me.t = thread % 4;
  ClampTally tally;
  int row_tiles;
  const int n_tiles = wgmma_tiles<kPair>(m, row_tiles);
  RingPlace<Shared::kStages> ring;
  for (int index = static_cast<int>(blockIdx.x); index < n_tiles;
       index += static_cast<int>(gridDim.x)) {
    const WgmmaTile tile = wgmma_tile<kPair>(m, index, row_tiles);
    const Place& p = tile.place;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      me.local[h] = tile.row_base + kOutputRows * me.warp + me.g + (kPair ? 0 : 8 * h);
      me.scales[h] = scale_row(m.shape, kPair && h == 1 ? p.up.scale : p.weight.scale,
                               p.first_weight_row + min(me.local[h], p.rows - 1));
    }
    const auto consume = [&]<int kN>() {
      wgmma_consume_tile<kN, F, kE4m3, kPair>(m, shared, p, me, ring, tally);
    };
    if (p.n_rows <= 32)
      consume.template operator()<32>();
    else if (p.n_rows <= 64)
      consume.template operator()<64>();
    else if (p.n_rows <= 96)
      consume.template operator()<96>();
    else
      consume.template operator()<128>();
  }
  if constexpr (kPair) {
    if (m.clamps != nullptr) tally.add_to(m.clamps);
  }
}

template <WeightFormat F, bool kE4m3, bool kPair>
__global__ __launch_bounds__(kWgmmaThreads, 1) void wgmma_kernel(const Matmul m) {
  using Shared = WgmmaShared<F, kE4m3>;
  extern __shared__ std::byte shared_bytes[];
  Shared& shared =
      *reinterpret_cast<Shared*>(shared_bytes + (-shared_address(shared_bytes) & 1023u));
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      barrier_init(shared_address(&shared.full[i]), 128 + 1);
      barrier_init(shared_address(&shared.empty[i]), kWgmmaConsumers / 32);
    }
    barrier_init_done();
  }
  if constexpr (kE4m3 && F == WeightFormat::fp4) fill_fp4_tables(shared.fp4_tables, thread);
  __syncthreads();
  if (thread >= kWgmmaConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    wgmma_produce<F, kE4m3, kPair>(m, shared, thread - kWgmmaConsumers);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    wgmma_consume<F, kE4m3, kPair>(m, shared, thread);
  }
}

}  // namespace hadal::kernels::cuda
