// E4M3 operands of products of FP8 and FP4 weights with activations rounded to FP8.
//
//   total = 0
//   for the blocks of 128 columns, ascending:
//     acc = 0;  for the 4 steps of a block, ascending: acc = wgmma.k32(W, x, acc)
//     total = fma(acc, weight's factor * token's factor, total)
//
// The tensor cores add the products of a step to some 14 bits below the largest, as every
// deployment of these formats does; the sums of blocks are f32. An instruction's other rows and
// columns change no bit, so the kernels for few and for many tokens agree.
//
// Which columns share a step is chosen so that a thread reads 16 bytes of a weight row at once:
// columns 64q + 16t' + 8r + [0, 8) in step 2q + r of FP8, and 32t' + 8s + [0, 8) in step s of FP4.
// Packed activations (linear_pack.cu) lie in that order.
//
// FP4: in E4M3 a block of a row is E2M1 times 2^(6 - d), d how far the scale of its group of 32 is
// below the row's largest in the block, whose 2^-6 is the block's factor. That is exact for
// d <= 14; smaller values are rounded to multiples of 2^-9, less than 2^-17 of the largest scale's
// 6: far below what the tensor cores keep.
#pragma once

#include "kernels/cuda/device/matmul_fragment.cuh"

namespace hadal::kernels::cuda {

// The eight magnitudes of E2M1 times 2^(6 - d), d = 0 .. kFp4Tables - 1; the last is all zeros.
inline constexpr int kFp4Tables = 20;

__device__ __forceinline__ void fill_fp4_tables(uint2* tables, int thread) {
  if (thread >= kFp4Tables) return;
  std::uint32_t words[2] = {};
#pragma unroll
  for (int code = 0; code < 8; ++code) {
    const float value = e2m1_to_float(static_cast<std::uint32_t>(code)) * exp2_int(6 - thread);
    words[code / 4] |= std::uint32_t{to_e4m3(value)} << (8 * (code % 4));
  }
  tables[thread] = {words[0], words[1]};
}

// Of the block whose groups the four threads of a quad hold. The sign is explained below.
__device__ __forceinline__ int fp4_block_scale(int group_scale) {
  int largest = max(group_scale, __shfl_xor_sync(0xffffffffu, group_scale, 1));
  return max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
}
__device__ __forceinline__ float fp4_block_factor(int block_scale) {
  return -0x1p-6f * ue8m0_to_float(static_cast<std::uint8_t>(block_scale));
}

// Four codes, in the low 16 bits, to four E4M3 of the opposite sign: a byte is 1 where a code is
// positive, and that times 128 is a sign.
__device__ __forceinline__ std::uint32_t decode_fp4x4(std::uint32_t codes, const uint2& table) {
  const std::uint32_t magnitude = prmt(table.x, table.y, codes & 0x7777u);
  const std::uint32_t positive = prmt(0x01010101u, 0x01010101u, codes);
  return magnitude + (positive << 7);
}

// 16 bytes of FP8 of row g + 8h to the operands of two steps.
__device__ __forceinline__ void put_operand(std::uint32_t (&first)[4], std::uint32_t (&second)[4],
                                            int h, const uint4& chunk) {
  first[h] = chunk.x, first[2 + h] = chunk.y, second[h] = chunk.z, second[2 + h] = chunk.w;
}
// 32 codes of FP4 of row g + 8h to the operands of four steps.
__device__ __forceinline__ void put_operands(std::uint32_t (&steps)[4][4], int h,
                                             const uint4& chunk, const uint2& table) {
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    steps[s][h] = decode_fp4x4(words[s], table);
    steps[s][2 + h] = decode_fp4x4(words[s] >> 16, table);
  }
}

}  // namespace hadal::kernels::cuda
