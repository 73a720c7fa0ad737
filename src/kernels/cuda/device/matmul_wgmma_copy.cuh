// What matmul_wgmma.cuh keeps in shared memory, the order of its tiles, and the warpgroup that
// copies: every thread 16 bytes of weights at a time, one of them the tokens in bulk.
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

}  // namespace hadal::kernels::cuda
