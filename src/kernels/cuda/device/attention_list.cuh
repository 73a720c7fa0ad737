// What both attention kernels share: the list of a token, and the softmax that runs along it.
//
// A token's list - its window, oldest first, then its compressed entries, ascending - is walked in
// tiles of 64 from its beginning, with the maximum so far: every value is one chain along the list
// (scores: along the head; sums and outputs: tile after tile). That chain is a function of the list
// alone. So a token has the same bits alone, in any batch, in prefill and in decode, however many
// heads share a block. The reference walks blocks of 64 too (architecture.md §3.4.2).
//
// Compared with the CPU, which takes probabilities against the maximum of the whole list, bf16
// rounds each p against the maximum so far: both are off by at most 2^-9 of p, not by the same.
#pragma once

#include <limits>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/sequence_table.cuh"

namespace hadal::kernels::cuda::attention {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kTile = 64;  // rows of a list that are worked on at a time
// Scores of a head and tile in shared memory: 16 more, so that the quads of two heads use different
// banks.
inline constexpr int kScoreStride = kTile + 16;

struct Sequence {
  std::int64_t begin, end;  // tokens
  std::int32_t start;       // position of token `begin`
  std::int32_t ring_rows;
  std::int32_t lists_all;  // no token of it leaves a visible entry out: entry j is number j
  DeviceRows window, entries;
};

template <class T>
struct Params {
  T* o;
  const T* q;
  DeviceRows new_rows;
  const float* sinks;
  const std::int32_t* selected;  // null: all visible
  float* log_sum_exp;            // null: not wanted
  const Sequence* sequences;
  int n_sequences;
  int n_heads, width, window, ratio, topk;
  float scale;
  bool aligned;  // fp8_mixed rows that can be copied 16 bytes at a time
};

// The list of one token; the same in every thread.
struct KeyList {
  const Sequence* sequence;
  const DeviceRows* new_rows;
  const std::int32_t* selected;  // null: entry j is number j
  std::int32_t oldest;           // position of the window's first row
  int n_window, n;               // rows of the window; of the list
  std::int64_t first_new;        // row of new_rows with the sequence's position `start`

  __device__ RowAddress row(int j) const {
    if (j >= n_window) {
      const int e = j - n_window;
      const int entry = selected != nullptr ? selected[e] : e;
      return address_of(sequence->entries, static_cast<std::uint32_t>(entry));
    }
    const std::int32_t position = oldest + j;
    if (position >= sequence->start) {
      return address_of(*new_rows,
                        static_cast<std::uint32_t>(first_new + position - sequence->start));
    }
    return address_of(sequence->window, static_cast<std::uint32_t>(position % sequence->ring_rows));
  }
};

// The list of token t; n is 0 for a token of no sequence. `words` are two ints of shared memory.
template <class T>
__device__ KeyList list_of(const Params<T>& p, std::int64_t t, int* words) {
  KeyList list{};
  const Sequence* s = find_sequence(p.sequences, p.n_sequences, t, words);
  if (s == nullptr) return list;
  const auto position = static_cast<std::int32_t>(s->start + (t - s->begin));
  list.sequence = s;
  list.new_rows = &p.new_rows;
  list.first_new = s->begin;
  list.oldest = max(0, position - (p.window - 1));
  list.n_window = position - list.oldest + 1;
  int n_entries = p.ratio == 0 ? 0 : (position + 1) / p.ratio;
  if (p.selected != nullptr && s->lists_all == 0) {
    list.selected = p.selected + t * p.topk;
    if (threadIdx.x == 0) words[1] = 0;
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x); k < p.topk; k += kThreads) {
      if (list.selected[k] >= 0 && (k + 1 == p.topk || list.selected[k + 1] < 0)) words[1] = k + 1;
    }
    __syncthreads();
    n_entries = words[1];
  }
  list.n = list.n_window + n_entries;
  return list;
}

// What a head remembers along its list; in shared memory.
struct Running {
  float peak;    // largest score so far
  float sum;     // of exp(score - peak), the sink not in it
  float shrink;  // what the last tile made of everything before it
};

// Scores of one head and tile, four lanes for it: `quarter` says which. `dots` are the lane's of
// [kTile]: columns 16 i + 4 quarter + k. Beyond the list they become -inf. Returns the largest.
inline constexpr int kLaneScores = kTile / 4;
__device__ __forceinline__ float scale_scores(float (&dots)[kLaneScores], int n_valid, float scale,
                                              int quarter) {
  float top = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int i = 0; i < kLaneScores; ++i) {
    const int j = i / 4 * 16 + 4 * quarter + i % 4;
    // No contraction with the subtraction that follows: every kernel must make the same of it.
    dots[i] = j < n_valid ? __fmul_rn(dots[i], scale) : -std::numeric_limits<float>::infinity();
    top = fmaxf(top, dots[i]);
  }
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  return fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
}
__device__ __forceinline__ void load_scores(float (&dots)[kLaneScores], const float* scores,
                                            int quarter) {
#pragma unroll
  for (int i = 0; i < kLaneScores; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(scores + 4 * i + 4 * quarter);
    dots[i] = four.x, dots[i + 1] = four.y, dots[i + 2] = four.z, dots[i + 3] = four.w;
  }
}
__device__ __forceinline__ void put_four(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void put_four(__nv_bfloat16* to, const float (&x)[4]) {
  alignas(8) const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(x[0], x[1]),
                                              __floats2bfloat162_rn(x[2], x[3])};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}
// exp(score - peak) of the tile into `probabilities` [kTile]; returns their sum, in a fixed order.
template <class T>
__device__ __forceinline__ float weigh_scores(const float (&scores)[kLaneScores], float peak,
                                              T* probabilities, int quarter) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneScores; i += 4) {
    float weights[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      weights[k] = expf(__fsub_rn(scores[i + k], peak));
      sum = __fadd_rn(sum, weights[k]);
    }
    put_four(probabilities + 4 * i + 4 * quarter, weights);
  }
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
  return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
}
// What a rise of the maximum makes of all that came before.
__device__ __forceinline__ float shrink_of(float old_peak, float peak) {
  return expf(__fsub_rn(old_peak, peak));
}

// Turns one head's dots of a tile into probabilities, which may be in the same memory.
template <class T>
__device__ __forceinline__ void softmax_tile(const float* dots, T* probabilities, int n_valid,
                                             float scale, Running& running, int quarter) {
  float z[kLaneScores];
  load_scores(z, dots, quarter);
  const float peak = fmaxf(running.peak, scale_scores(z, n_valid, scale, quarter));
  const float sum = weigh_scores(z, peak, probabilities, quarter);
  const float shrink = shrink_of(running.peak, peak);
  const float total = __fmaf_rn(running.sum, shrink, sum);
  __syncwarp();  // all four have read what one writes
  if (quarter == 0) running = {peak, total, shrink};
}

// The denominator of a head at the end of its list.
__device__ __forceinline__ float denominator(const Running& running, float sink) {
  return __fadd_rn(running.sum, expf(__fsub_rn(sink, running.peak)));
}

// Launchers. `longest` is the length of the longest list.
void attend_f32(Stream& stream, const Params<float>& params, std::int64_t n_tokens);
void attend_bf16(Stream& stream, const Params<__nv_bfloat16>& params, std::int64_t n_tokens,
                 std::int64_t longest);
// For few tokens, whose lists are `longest` at most; false when that is not what it is for.
bool attend_split(Stream& stream, const Params<__nv_bfloat16>& params, std::int64_t n_tokens,
                  std::int64_t longest);

}  // namespace hadal::kernels::cuda::attention
