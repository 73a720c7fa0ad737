// Products of weights with activations: what a launch is told, and how weights become operands of
// the tensor cores.
//
//   y[t, r] = sum over k of W[r, k] x[t, k]
//
// One output is one fixed chain, whatever is computed beside it:
//
//   total = 0
//   for the blocks of 128 columns, ascending:
//     acc = 0;  for the 8 steps of a block, ascending: acc = mma.m16n8k16(W, x, acc)
//     total = fma(acc, scale of the weight's block (FP8) or 1, total)
//
// Weight rows are always the M side of the instruction and tokens the N side, so a batch changes
// only which columns of the instruction are used. The kernel for few tokens (matmul_stream.cuh)
// computes the blocks of 128 on different warps and adds them up in this order; those for many
// (matmul_tile.cuh, matmul_wgmma.cuh) do it in place. Their bits are equal.
//
// FP8 and FP4 weights with activations rounded to FP8 are multiplied as E4M3 instead, at twice the
// speed: that chain is in e4m3_fragment.cuh. Below is the one of everything else.
//
// All operands are bf16, exactly: an E4M3 weight is one, an E2M1 weight times its power of two is
// one, and so is an activation rounded to E4M3 times its power of two. Which columns share a step
// of 16 is chosen so that a thread loads 16 bytes of a weight row at a time: columns
// [V*t', V*t'+V), V = 8 (bf16), 16 (E4M3) or 32 (E2M1: one scale), see source_chunk.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/quant.h"
#include "kernels/activation_quant.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

inline constexpr int kBlockCols = 128;  // of the chain above

enum class WeightFormat : std::uint8_t { f32, bf16, fp8, fp4 };

// Storage of one weight; of several of one shape, at a stride or in a table.
struct Matrix {
  const std::byte* data = nullptr;
  const std::byte* scale = nullptr;
};
struct MatrixTable {
  Matrix first;
  std::int64_t data_stride = 0, scale_stride = 0;
  const Matrix* all = nullptr;  // device memory; null: first + i * stride

  __device__ Matrix operator[](int i) const {
    if (all != nullptr) return all[i];
    return {first.data + i * data_stride, first.scale + i * scale_stride};
  }
};
struct WeightShape {
  WeightFormat format = WeightFormat::bf16;
  bool f32_scale = false;  // else ue8m0
  bool aligned = true;     // rows begin at multiples of 16 bytes
  int rows = 0, cols = 0;
  std::int64_t row_bytes = 0;
  int scale_cols = 0, block_rows = 1, block_cols = 1;
};

// Tokens [row0, row0 + n_rows) of the permuted rows, all of one weight.
struct TokenTile {
  int weight, row0, n_rows;
};

// Plain data, passed to kernels by value.
struct Matmul {
  WeightShape shape;
  MatrixTable weight;  // gate_proj of a pair
  MatrixTable up;      // only of a pair

  // Activations: row i is at x + (x_row ? x_row[i] : i) * x_pitch. For the tensor cores rows hold
  // whole blocks of columns, zero beyond cols, and begin at multiples of 16 bytes.
  const void* x = nullptr;
  bool x_f32 = false;
  std::int64_t x_pitch = 0;
  const std::int32_t* x_row = nullptr;

  // Packed activations instead (linear_pack.cu), for the kernels that take them.
  const std::byte* packed = nullptr;
  const float* packed_scale = nullptr;  // only of E4M3
  int packed_rows = 0;                  // a multiple of 8

  // Without tiles: rows [0, n_rows) of weight 0 in n_groups groups of output rows, whose columns
  // of x are x_group_stride apart. With tiles: at most max_tiles, *n_tiles of them filled in.
  int n_rows = 0;
  int n_groups = 1;
  std::int64_t x_group_stride = 0;
  const TokenTile* tiles = nullptr;
  const std::int32_t* n_tiles = nullptr;
  int max_tiles = 0;
  int tile_rows = 0;  // most rows of a tile: one of those below

  // y[row * y_pitch + group * group_rows + r]
  void* y = nullptr;
  bool y_f32 = false;
  std::int64_t y_pitch = 0;

  // Of a pair: y = w * silu(min(gate, limit)) * clamp(up, +-limit), gate and up rounded to y's
  // type.
  const float* row_weight = nullptr;     // null: 1
  float limit = 0;                       // 0: none
  unsigned long long* clamps = nullptr;  // [3] gate above, up above, up below; null: not counted
};

// Tiles of tokens that kernels take: kNarrowRows only with packed activations, kSmallTileRows only
// without. Tiles begin at rows that are multiples of kNarrowRows.
inline constexpr int kNarrowRows = 8, kStreamRows = 16, kSmallTileRows = 32, kTileRows = 128;
// A good one for a batch of n_tokens in which a weight meets `mean_rows` of them on average.
[[nodiscard]] int tile_rows_for(std::int64_t n_tokens, std::int64_t mean_rows, bool e4m3);

// Throws unsupported on a storage format without code.
[[nodiscard]] WeightShape weight_shape(const QuantTensor& w);
[[nodiscard]] inline Matrix matrix_of(const QuantTensor& w) {
  return {w.data.bytes(), w.scale ? w.scale.bytes() : nullptr};
}

// Launches: y = W x, or the swiglu of a pair. `tile_rows` is chosen here when there are no tiles.
void matmul(Stream& stream, const Matmul& m);
void matmul_swiglu(Stream& stream, const Matmul& m);
// The same in plain f32 (linear_matmul_f32.cu): f32 activations or f32 weights.
void matmul_f32(Stream& stream, const Matmul& m, bool pair);

// Activations as Matmul wants them.
struct MatmulInput {
  Tensor memory;  // holds the copy, if there is one
  const void* x = nullptr;
  std::int64_t pitch = 0, group_stride = 0;  // elements
};
[[nodiscard]] MatmulInput matmul_input(Stream& stream, const TensorView& x, std::int64_t n_groups,
                                       ActivationQuant quant);

// How a product wants its activations. Whether it is the chain of E4M3 does not depend on the
// number of tokens; of the other chain, `many` of them are packed for the kernel that is faster
// then.
inline constexpr std::int64_t kMostRowsUnpacked = 64;
enum class Packing : std::uint8_t { none, bf16, e4m3 };
[[nodiscard]] Packing packing_of(const WeightShape& w, DType x, ActivationQuant quant, bool many);

// Activations in the order of the tensor cores' operands, in atoms of 8 rows times 128 bytes
// (wgmma.cuh): [group of columns][block of 128 columns][bf16: half of it][8 rows][atom], so that
// the rows of a tile in a block are one piece of memory. With E4M3 a factor a row and block,
// [group of columns][block][row].
struct PackedInput {
  Tensor memory, scale_memory;
  int rows = 0;

  void put_into(Matmul& m) const {
    m.packed = memory.bytes();
    m.packed_scale = scale_memory ? scale_memory.data<float>() : nullptr;
    m.packed_rows = rows;
  }
};
struct PackSource {
  TensorView x;  // [*, n_groups * cols] bf16
  int n_groups = 1;
  int n_rows = 0;                          // packed
  const std::int32_t* row = nullptr;       // of x, on the device; negative: none. Null: the same
  const std::int32_t* n_filled = nullptr;  // on the device: rows of n_rows that there are
};
[[nodiscard]] PackedInput pack_input(Stream& stream, const PackSource& from, WeightFormat format,
                                     Packing packing);

// ------------------------------------------------------------------ where a block of threads works

struct Place {
  Matrix weight, up;
  int row0, n_rows;            // tokens
  std::int64_t x_offset;       // elements
  int first_weight_row, rows;  // of the group
  std::int64_t y_offset;       // elements
};

template <bool kPair>
__device__ __forceinline__ bool find_place(const Matmul& m, Place& p) {
  if (m.tiles != nullptr) {
    if (static_cast<int>(blockIdx.y) >= *m.n_tiles) return false;
    const TokenTile tile = m.tiles[blockIdx.y];
    p.weight = m.weight[tile.weight];
    if constexpr (kPair) p.up = m.up[tile.weight];
    p.row0 = tile.row0;
    p.n_rows = tile.n_rows;
    p.x_offset = 0;
    p.first_weight_row = 0;
    p.rows = m.shape.rows;
    p.y_offset = 0;
    return true;
  }
  const int group = static_cast<int>(blockIdx.z);
  p.weight = m.weight.first;
  if constexpr (kPair) p.up = m.up.first;
  p.row0 = static_cast<int>(blockIdx.y) * m.tile_rows;
  p.n_rows = min(m.tile_rows, m.n_rows - p.row0);
  p.x_offset = group * m.x_group_stride;
  p.rows = m.shape.rows / m.n_groups;
  p.first_weight_row = group * p.rows;
  p.y_offset = p.first_weight_row;
  return true;
}

// Element offset of activation row i of the tile.
__device__ __forceinline__ std::int64_t x_offset_of(const Matmul& m, const Place& p, int i) {
  const int row = p.row0 + i;
  return (m.x_row != nullptr ? m.x_row[row] : row) * m.x_pitch + p.x_offset;
}

__device__ __forceinline__ void put_y(const Matmul& m, const Place& p, int token, int row,
                                      float value) {
  const std::int64_t at = (p.row0 + token) * m.y_pitch + p.y_offset + row;
  if (m.y_f32)
    static_cast<float*>(m.y)[at] = value;
  else
    put(static_cast<__nv_bfloat16*>(m.y)[at], value);
}

struct ClampTally {
  unsigned gate_above = 0, up_above = 0, up_below = 0;

  // All threads of a warp take part.
  __device__ void add_to(unsigned long long* counts) const {
    const unsigned sums[3] = {__reduce_add_sync(0xffffffffu, gate_above),
                              __reduce_add_sync(0xffffffffu, up_above),
                              __reduce_add_sync(0xffffffffu, up_below)};
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < 3; ++i) {
        if (sums[i] != 0) atomicAdd(counts + i, static_cast<unsigned long long>(sums[i]));
      }
    }
  }
};

__device__ __forceinline__ float swiglu(const Matmul& m, const Place& p, int token, float gate,
                                        float up, ClampTally& tally) {
  const float g0 = m.y_f32 ? gate : rounded<__nv_bfloat16>(gate);
  const float u0 = m.y_f32 ? up : rounded<__nv_bfloat16>(up);
  const float cap = m.limit > 0.0f ? m.limit : INFINITY;
  const float g = g0 > cap ? cap : g0;
  const float u1 = u0 > cap ? cap : u0;
  const float u = u1 < -cap ? -cap : u1;
  tally.gate_above += g0 > cap ? 1u : 0u;
  tally.up_above += u0 > cap ? 1u : 0u;
  tally.up_below += u0 < -cap ? 1u : 0u;
  const float w = m.row_weight != nullptr ? m.row_weight[p.row0 + token] : 1.0f;
  return w * (g * (1.0f / (1.0f + expf(-g))) * u);
}
__device__ __forceinline__ void put_swiglu(const Matmul& m, const Place& p, int token, int row,
                                           float gate, float up, ClampTally& tally) {
  put_y(m, p, token, row, swiglu(m, p, token, gate, up, tally));
}

// The scales of a weight row (of the whole weight).
__device__ __forceinline__ const std::byte* scale_row(const WeightShape& s, const std::byte* scale,
                                                      int row) {
  return scale + std::int64_t{row / s.block_rows} * s.scale_cols * (s.f32_scale ? 4 : 1);
}
// The scale of an FP8 block of columns in such a row.
__device__ __forceinline__ float fp8_scale(const WeightShape& s, const std::byte* scales,
                                           int block) {
  // Division is slow, and there is one size of blocks in practice.
  const int i = s.block_cols == kBlockCols ? block : block * kBlockCols / s.block_cols;
  return s.f32_scale ? reinterpret_cast<const float*>(scales)[i]
                     : ue8m0_to_float(reinterpret_cast<const std::uint8_t*>(scales)[i]);
}
// The scale byte of an FP4 group of 32 columns; the smallest for a group beyond the columns.
__device__ __forceinline__ std::uint32_t fp4_scale(const WeightShape& s, const std::byte* scales,
                                                   int group) {
  return group < s.scale_cols ? reinterpret_cast<const std::uint8_t*>(scales)[group] : 0;
}

}  // namespace hadal::kernels::cuda
