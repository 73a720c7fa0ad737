// Operands of mma.m16n8k16 from stored weights and bf16 activations.
//
// A thread of a warp is (g, t) = (lane / 4, lane % 4). In a step of 16 columns it holds four
// columns of weight rows g and g + 8 and the same four of token g. A block of 128 columns is eight
// steps, two of which (a "pair", p = 0..3) take eight neighbouring columns from each thread.
#pragma once

#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

// 16 bytes of a weight row hold the columns of this many pairs of steps.
template <WeightFormat F>
inline constexpr int kPairsPerChunk = F == WeightFormat::fp4   ? 4
                                      : F == WeightFormat::fp8 ? 2
                                                               : 1;
// Of one row: pieces of 16 bytes of a block that belong to a thread, and bytes of the whole block.
template <WeightFormat F>
inline constexpr int kChunks = 4 / kPairsPerChunk<F>;
template <WeightFormat F>
inline constexpr int kBlockBytes = 64 * kChunks<F>;

// The eight columns (as a piece of 16 bytes of bf16, 0..15 in a block) of pair p and thread t.
template <WeightFormat F>
__device__ constexpr int source_chunk(int p, int t) {
  constexpr int P = kPairsPerChunk<F>;
  return 4 * P * (p / P) + P * t + p % P;
}
// The inverse: 4 * p + t.
template <WeightFormat F>
__device__ constexpr int fragment_chunk(int j) {
  constexpr int P = kPairsPerChunk<F>;
  return 4 * (j / (4 * P) * P + j % P) + j / P % 4;
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte i of the result is byte (nibble i of select & 7) of {b, a}; where the nibble's high bit is
// set, that byte's sign instead.
__device__ __forceinline__ std::uint32_t prmt(std::uint32_t a, std::uint32_t b,
                                              std::uint32_t select) {
  std::uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(select));
  return d;
}

// Both halves: subnormals count, and products with powers of two are exact.
__device__ __forceinline__ std::uint32_t mul_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// Two E4M3 codes in the upper bytes of y's halves. Moved to where bf16 has exponent and mantissa
// they are 2^-120 times the value. (The NaN codes become +-480: a checkpoint has none.)
__device__ __forceinline__ std::uint32_t e4m3x2_to_bf16x2(std::uint32_t y) {
  const std::uint32_t scaled = ((y >> 4) & 0x07f007f0u) | (y & 0x80008000u);
  return mul_bf16x2(scaled, 0x7b807b80u);  // 2^120
}

// The eight magnitudes of E2M1 times one power of two as bf16, split into upper and lower bytes
// for look-up by prmt.
struct Fp4Table {
  std::uint32_t upper[2], lower[2];

  __device__ __forceinline__ void fill(std::uint32_t scale_byte) {
    const std::uint32_t one = scale_byte == 0     ? 0x0040u  // 2^-127
                              : scale_byte == 255 ? 0x7fc0u  // NaN
                                                  : scale_byte << 7;
    const std::uint32_t scale = one | one << 16;
    const std::uint32_t v01 = mul_bf16x2(0x3f000000u, scale);  // 0, 0.5
    const std::uint32_t v23 = mul_bf16x2(0x3fc03f80u, scale);  // 1, 1.5
    const std::uint32_t v45 = mul_bf16x2(0x40404000u, scale);  // 2, 3
    const std::uint32_t v67 = mul_bf16x2(0x40c04080u, scale);  // 4, 6
    upper[0] = prmt(v01, v23, 0x7531), lower[0] = prmt(v01, v23, 0x6420);
    upper[1] = prmt(v45, v67, 0x7531), lower[1] = prmt(v45, v67, 0x6420);
  }
  // Four codes, in the low 16 bits, to two pairs.
  __device__ __forceinline__ void decode4(std::uint32_t codes, std::uint32_t& v01,
                                          std::uint32_t& v23) const {
    const std::uint32_t index = codes & 0x7777u;
    const std::uint32_t positive = prmt(0x40404040u, 0x40404040u, codes);  // 0x40, or 0 if negative
    const std::uint32_t up = prmt(upper[0], upper[1], index) | (~(positive << 1) & 0x80808080u);
    const std::uint32_t low = prmt(lower[0], lower[1], index);
    v01 = prmt(low, up, 0x5140);
    v23 = prmt(low, up, 0x7362);
  }
};

// The eight columns of pair number r of `chunk` as bf16, in order.
template <WeightFormat F>
__device__ __forceinline__ void decode_pair(const uint4& chunk, int r, const Fp4Table& table,
                                            std::uint32_t (&v)[4]) {
  if constexpr (F == WeightFormat::bf16) {
    v[0] = chunk.x, v[1] = chunk.y, v[2] = chunk.z, v[3] = chunk.w;
  } else if constexpr (F == WeightFormat::fp8) {
    const std::uint32_t w0 = r == 0 ? chunk.x : chunk.z, w1 = r == 0 ? chunk.y : chunk.w;
    v[0] = e4m3x2_to_bf16x2(prmt(w0, 0u, 0x1404)), v[1] = e4m3x2_to_bf16x2(prmt(w0, 0u, 0x3424));
    v[2] = e4m3x2_to_bf16x2(prmt(w1, 0u, 0x1404)), v[3] = e4m3x2_to_bf16x2(prmt(w1, 0u, 0x3424));
  } else {
    const std::uint32_t w = r == 0 ? chunk.x : r == 1 ? chunk.y : r == 2 ? chunk.z : chunk.w;
    table.decode4(w, v[0], v[1]);
    table.decode4(w >> 16, v[2], v[3]);
  }
}

// The operands of the two steps of a pair from rows g (v[0]) and g + 8 (v[1]).
__device__ __forceinline__ void weight_operands(const std::uint32_t (&v)[2][4],
                                                std::uint32_t (&first)[4],
                                                std::uint32_t (&second)[4]) {
  first[0] = v[0][0], first[1] = v[1][0], first[2] = v[0][1], first[3] = v[1][1];
  second[0] = v[0][2], second[1] = v[1][2], second[2] = v[0][3], second[3] = v[1][3];
}

// 16 bytes of a row from byte `at` on, zeros beyond its end; for rows that are not aligned, too.
__device__ __noinline__ static uint4 load_chunk_slowly(const std::byte* row, std::int64_t at,
                                                       std::int64_t row_bytes) {
  std::uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (at + i < row_bytes) {
      words[i / 4] |= static_cast<std::uint32_t>(row[at + i]) << (8 * (i % 4));
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Where piece c of 16 bytes of row r lies in shared memory: the eight threads that read at once,
// two rows of four pieces, find eight different sets of banks.
template <int kRowBytes>
__device__ __forceinline__ int swizzled(int r, int c) {
  return r * kRowBytes + (kRowBytes > 64 ? c ^ (r % 2 * 4) : c) * 16;
}

}  // namespace hadal::kernels::cuda
