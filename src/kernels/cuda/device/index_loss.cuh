// What the kernels of the indexer's loss share: pieces of sequences, and what a block finds of its
// query.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda::index_loss_detail {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr float kMinMass = 1e-20f;

// Consecutive queries of a sequence, which see keys [0, n_keys) of it at most.
struct Piece {
  std::int64_t begin;      // token
  std::int64_t key_row;    // of index_keys
  std::int64_t entry_row;  // of the widened entries
  std::int64_t scores;     // where its [n_tokens, n_keys] matrices begin
  std::int32_t n_tokens, n_keys;
  std::int32_t position;                // of its first token
  std::int32_t listed;                  // whether queries have lists
  std::int32_t token_block, key_block;  // its first blocks
};

struct Problem {
  const Piece* pieces;
  std::int32_t n_pieces;
  const void *queries, *index_queries, *index_weights, *index_keys;  // T
  const void* entries;                                               // C
  const float* log_sum_exp;
  const std::int32_t* selected;
  std::int32_t topk, ratio, n_heads, width, index_n_heads, index_width, recall_topk;
  float softmax_scale, scale;
  float *teacher, *student;
  float *loss, *mass, *recall, *best_recall, *dindex_queries, *dindex_weights, *dindex_keys;
};

template <std::int32_t Piece::* kFirst>
__device__ __forceinline__ const Piece& piece_of(const Problem& p) {
  int low = 0, high = p.n_pieces;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.pieces[middle].*kFirst <= static_cast<std::int32_t>(blockIdx.x) ? low : high) = middle;
  }
  return p.pieces[low];
}

// One query and the keys that count for it.
struct Query {
  std::int64_t token;
  const std::int32_t* list;  // null: keys are [0, n)
  std::int32_t n, visible;
  float *teacher, *student;  // rows of the matrices, by key

  __device__ std::int32_t key(std::int32_t k) const { return list == nullptr ? k : list[k]; }
};
__device__ __forceinline__ Query query_of(const Problem& p, const Piece& piece) {
  const std::int32_t i = static_cast<std::int32_t>(blockIdx.x) - piece.token_block;
  Query q{};
  q.token = piece.begin + i;
  q.visible = min(piece.n_keys, (piece.position + i + 1) / p.ratio);
  q.n = q.visible;
  q.teacher = p.teacher + piece.scores + std::int64_t{i} * piece.n_keys;
  q.student = p.student + piece.scores + std::int64_t{i} * piece.n_keys;
  if (piece.listed == 0) return q;
  q.list = p.selected + q.token * p.topk;
  std::int32_t low = 0, high = p.topk;  // how many are before the first -1
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    if (q.list[middle] >= 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  q.n = low;
  return q;
}

// The dot products of x with some keys, on every lane.
template <int kN, class X, class K>
__device__ __forceinline__ void dots(float (&out)[kN], const X* x, const K* const (&keys)[kN],
                                     int width) {
#pragma unroll
  for (int k = 0; k < kN; ++k) out[k] = 0.0f;
  for (int c = static_cast<int>(threadIdx.x % 32); c < width; c += 32) {
    const float value = load(x[c]);
#pragma unroll
    for (int k = 0; k < kN; ++k) out[k] += value * load(keys[k][c]);
  }
#pragma unroll
  for (int k = 0; k < kN; ++k) out[k] = warp_sum(out[k]);
}

template <class T, class C>
struct Rows {
  const T *queries, *index_queries, *index_weights;  // of one token
  const C* entries;
  const T* keys;
};
template <class T, class C>
__device__ __forceinline__ Rows<T, C> rows_of(const Problem& p, const Piece& piece,
                                              std::int64_t token) {
  return {static_cast<const T*>(p.queries) + token * p.n_heads * p.width,
          static_cast<const T*>(p.index_queries) + token * p.index_n_heads * p.index_width,
          static_cast<const T*>(p.index_weights) + token * p.index_n_heads,
          static_cast<const C*>(p.entries) + piece.entry_row * p.width,
          static_cast<const T*>(p.index_keys) + piece.key_row * p.index_width};
}

// Teacher and student of every query's keys. One block a query; `entries` is the type of the
// problem's entries, `activation` of the rest.
void score(Stream& stream, const Problem& problem, std::int64_t n_queries, DType activation,
           DType entries);
// Recall of the queries without lists, before their loss, or of those with lists, after it.
void measure_recall(Stream& stream, const Problem& problem, std::int64_t n_queries, bool listed,
                    DType activation, DType entries);

}  // namespace hadal::kernels::cuda::index_loss_detail
