// The kernels that multiply, by name; each family is compiled in a file of its own.
#pragma once

#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

// Bytes of shared memory for the products of one matrix in the kernel for few tokens, which come in
// tiles of 8: per block of columns [tokens][16 weight rows], padded so that banks differ.
inline constexpr int kStreamThreads = 256, kStreamWeightRows = 16;
inline constexpr int kPartialPitch = kStreamWeightRows + 4;
constexpr std::int64_t stream_shared_bytes(std::int64_t cols, int n_token_tiles) {
  return (cols + kBlockCols - 1) / kBlockCols * 8 * n_token_tiles * kPartialPitch * 4;
}

// m.tile_rows == kStreamRows, and the shared memory suffices.
void launch_stream(Stream& stream, const Matmul& m, bool pair);
// Any m.tile_rows.
void launch_tile(Stream& stream, const Matmul& m, bool pair);
// Packed activations, at most so many rows a tile; 0: shared memory does not suffice.
[[nodiscard]] int stream_e4m3_rows(const Matmul& m, bool pair);
// m.tile_rows == kNarrowRows or kStreamRows.
void launch_stream_e4m3(Stream& stream, const Matmul& m, bool pair);
// Packed activations, at most kTileRows of them a tile.
void launch_wgmma_e4m3(Stream& stream, const Matmul& m, bool pair);
void launch_wgmma_bf16(Stream& stream, const Matmul& m, bool pair);  // bf16 and FP8 weights

// Blocks: weight rows, tiles of tokens, groups.
inline dim3 matmul_blocks(const Matmul& m, int block_weight_rows) {
  const unsigned x = blocks_for(m.shape.rows / m.n_groups, block_weight_rows);
  if (m.tiles != nullptr) return {x, static_cast<unsigned>(m.max_tiles), 1};
  return {x, blocks_for(m.n_rows, m.tile_rows), static_cast<unsigned>(m.n_groups)};
}

// Calls fn.operator()<format>() for the formats of the tensor cores.
template <class Fn>
void dispatch_format(WeightFormat format, Fn&& fn) {
  switch (format) {
    case WeightFormat::bf16:
      return fn.template operator()<WeightFormat::bf16>();
    case WeightFormat::fp8:
      return fn.template operator()<WeightFormat::fp8>();
    case WeightFormat::fp4:
      return fn.template operator()<WeightFormat::fp4>();
    case WeightFormat::f32:
      break;
  }
  HADAL_CHECK(format != WeightFormat::f32);
}

}  // namespace hadal::kernels::cuda
