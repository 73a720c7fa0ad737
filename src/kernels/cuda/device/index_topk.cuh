// What the parts of index_topk share: which queries are scored, and scores as integers.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/device.h"
#include "kernels/cuda/device/paged_rows.cuh"

namespace hadal::kernels::cuda::indexer {

// A score as an unsigned integer of the same order, as wide as the activations: bf16 scores have
// been rounded to 16 bits anyway. Both zeros are one value, as in a comparison of floats.
template <class T>
struct ScoreKey;
template <>
struct ScoreKey<float> {
  using Type = std::uint32_t;
};
template <>
struct ScoreKey<__nv_bfloat16> {
  using Type = std::uint16_t;
};

__device__ __forceinline__ std::uint32_t score_key(float score, std::uint32_t) {
  const std::uint32_t u = score == 0.0f ? 0u : __float_as_uint(score);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ std::uint16_t score_key(float score, std::uint16_t) {
  std::uint32_t u = __bfloat16_as_ushort(__float2bfloat16_rn(score));
  u = u == 0x8000u ? 0u : u;
  return static_cast<std::uint16_t>((u & 0x8000u) != 0 ? ~u : u | 0x8000u);
}

// Consecutive queries of one sequence that are scored together, so that they share the decoding of
// keys. Query i sees the entries below (position + i + 1) / ratio; its scores are row `row` + i.
struct ScoreItem {
  std::int32_t sequence;
  std::int32_t token;  // row of q
  std::int32_t n_queries;
  std::int32_t position;
  std::int32_t row;
};
// Whose scores a row holds.
struct ScoreRow {
  std::int32_t token;
  std::int32_t n;  // visible entries; more than topk
};

template <class T>
struct ScoreParams {
  typename ScoreKey<T>::Type* scores;  // [rows, stride]
  std::int64_t stride;                 // a multiple of 256
  const T* q;
  const T* weights;
  const DeviceRows* keys;  // of each sequence
  const ScoreItem* items;
  int n_heads, width, ratio;
};

// The tensor-core kernel takes bf16 queries and fp4 keys of width 64 or 128 whose pages begin at 16
// bytes, the other one anything of at most kMaxPlainWidth.
inline constexpr std::int64_t kMaxPlainWidth = 512;
void score_plain(Stream& stream, const ScoreParams<float>& p, std::int64_t n_items,
                 std::int64_t n_keys);
void score_plain(Stream& stream, const ScoreParams<__nv_bfloat16>& p, std::int64_t n_items,
                 std::int64_t n_keys);
void score_on_tensor_cores(Stream& stream, const ScoreParams<__nv_bfloat16>& p,
                           std::int64_t n_items, std::int64_t n_keys, int queries_per_item);
// How many queries' operands fit a block's shared memory: at least 1, or 0 for too many heads.
int queries_on_tensor_cores(std::int64_t n_heads, std::int64_t width);

// Lists the topk best of every row of scores: ties to the lower entry, ascending.
//   selected [n_tokens, topk]
void select_entries(Stream& stream, const std::uint16_t* scores, std::int64_t stride,
                    const ScoreRow* rows, std::int64_t n_rows, std::int64_t n_keys,
                    std::int32_t* selected, std::int64_t topk);
void select_entries(Stream& stream, const std::uint32_t* scores, std::int64_t stride,
                    const ScoreRow* rows, std::int64_t n_rows, std::int64_t n_keys,
                    std::int32_t* selected, std::int64_t topk);

}  // namespace hadal::kernels::cuda::indexer
