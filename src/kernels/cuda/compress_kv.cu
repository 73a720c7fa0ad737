// Compressing KV projections, in three launches for a batch of any sequences: the position bias (a
// block for a token), the entries (a thread for a channel of an entry, rows ascending, so that an
// entry has the same bits whether its rows came in one call or in many), and the tails, which are
// only overwritten once no entry needs what they held.
#include "kernels/compress_kv.h"

#include <limits>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/sequence_table.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;

struct Sequence {
  std::int64_t begin, end;   // tokens
  std::int64_t start;        // position of token `begin`
  std::int64_t first_row;    // of `entries`
  std::int64_t first_entry;  // its number in the sequence
  std::int64_t ring;         // rows of the tail; 0: none
  float* tail_kv;
  float* tail_gate;
};
// The same sequences by the rows of `entries` that they fill.
struct Filled {
  std::int64_t begin, end;  // rows of `entries`
  int sequence;
};

__global__ void __launch_bounds__(kThreads)
    add_position_bias(float* gate, const float* bias, const Sequence* sequences, int n_sequences,
                      int ratio, int row_width) {
  __shared__ int found;
  const std::int64_t t = blockIdx.x;
  const Sequence* s = find_sequence(sequences, n_sequences, t, &found);
  if (s == nullptr) return;
  float* row = gate + t * row_width;
  const float* b = bias + (s->start + t - s->begin) % ratio * row_width;
  for (int e = static_cast<int>(threadIdx.x); e < row_width; e += kThreads) row[e] += b[e];
}

// Rows of one series of a window: positions [first, first + n) of the batch or of the tail.
struct Series {
  const float* kv;
  const float* gate;
  const float* tail_kv;
  const float* tail_gate;
  std::int64_t start, begin, ring;
  int row_width;

  __device__ const float* row(const float* batch, const float* tail, std::int64_t position) const {
    return position >= start ? batch + (begin + position - start) * row_width
                             : tail + position % ring * row_width;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    pool_entries(T* entries, const float* kv, const float* gate, const Sequence* sequences,
                 const Filled* filled, int n_filled, int ratio, bool overlap, int row_width,
                 int width) {
  __shared__ int found;
  const std::int64_t out = blockIdx.x;
  const Filled* f = find_sequence(filled, n_filled, out, &found);
  if (f == nullptr) return;
  const Sequence& s = sequences[f->sequence];
  const int e = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (e >= width) return;
  const Series rows{kv, gate, s.tail_kv, s.tail_gate, s.start, s.begin, s.ring, row_width};
  const std::int64_t entry = s.first_entry + (out - s.first_row), p0 = entry * ratio;
  // The window before it, from the first half of the columns. The first entry has none: its weight
  // would be exactly 0.
  const std::int64_t before = overlap && entry > 0 ? p0 - ratio : p0;
  const int own_column = e + (overlap ? width : 0);
  const auto column = [&](std::int64_t p) { return p < p0 ? e : own_column; };

  float peak = -std::numeric_limits<float>::infinity();
#pragma unroll 8
  for (std::int64_t p = before; p < p0 + ratio; ++p) {
    peak = fmaxf(peak, rows.row(rows.gate, rows.tail_gate, p)[column(p)]);
  }
  float sum = 0.0f, value = 0.0f;
#pragma unroll 8
  for (std::int64_t p = before; p < p0 + ratio; ++p) {
    const float weight = expf(rows.row(rows.gate, rows.tail_gate, p)[column(p)] - peak);
    sum += weight;
    value = fmaf(weight, rows.row(rows.kv, rows.tail_kv, p)[column(p)], value);
  }
  put(entries[out * width + e], __fdiv_rn(value, sum));
}

__global__ void __launch_bounds__(kThreads)
    store_tails(const float* kv, const float* gate, const Sequence* sequences, int n_sequences,
                int row_width) {
  __shared__ int found;
  const std::int64_t t = blockIdx.x;
  const Sequence* s = find_sequence(sequences, n_sequences, t, &found);
  // Of a ring shorter than the batch only the newest positions survive.
  if (s == nullptr || t < s->end - s->ring) return;
  const std::int64_t to = (s->start + t - s->begin) % s->ring * row_width, from = t * row_width;
  for (int e = static_cast<int>(threadIdx.x); e < row_width; e += kThreads) {
    s->tail_kv[to + e] = kv[from + e];
    s->tail_gate[to + e] = gate[from + e];
  }
}

}  // namespace

void compress_kv(Stream& stream, const CompressKvArgs& a) {
  std::vector<Sequence> sequences;
  std::vector<Filled> filled;
  bool any_tail = false;
  for (const CompressSequence& s : a.sequences) {
    if (s.begin >= s.end) continue;
    const std::int64_t end_position = s.start + s.end - s.begin;
    const std::int64_t first = s.start / a.ratio, last = end_position / a.ratio;
    if (last > first) {
      filled.push_back(
          {s.first_entry, s.first_entry + last - first, static_cast<int>(sequences.size())});
    }
    Sequence& d = sequences.emplace_back();
    d = {.begin = s.begin,
         .end = s.end,
         .start = s.start,
         .first_row = s.first_entry,
         .first_entry = first,
         .ring = 0,
         .tail_kv = nullptr,
         .tail_gate = nullptr};
    if (!s.tail.kv) continue;
    any_tail = true;
    d.ring = s.tail.kv.dim(0);
    d.tail_kv = data<float>(s.tail.kv);
    d.tail_gate = data<float>(s.tail.gate);
  }
  if (sequences.empty()) return;
  const auto n_tokens = static_cast<unsigned>(a.kv.dim(0));
  const auto n_sequences = static_cast<int>(sequences.size());
  const auto row_width = static_cast<int>(a.kv.dim(1)), ratio = static_cast<int>(a.ratio);
  const auto* table = stream.cuda().stage(std::span<const Sequence>(sequences));
  auto* kv = data<float>(a.kv);
  auto* gate = data<float>(a.gate);

  launch(stream, "compress_kv: position bias", add_position_bias, {dim3(n_tokens), dim3(kThreads)},
         gate, data<const float>(a.position_bias), table, n_sequences, ratio, row_width);
  if (!filled.empty()) {
    const auto* by_entry = stream.cuda().stage(std::span<const Filled>(filled));
    const auto width = static_cast<int>(a.entries.dim(1));
    dispatch_activation(a.entries.dtype(), [&]<class T>() {
      launch(stream, "compress_kv", pool_entries<T>,
             {dim3(static_cast<unsigned>(a.entries.dim(0)), blocks_for(width, kThreads)),
              dim3(kThreads)},
             data<T>(a.entries), kv, gate, table, by_entry, static_cast<int>(filled.size()), ratio,
             a.overlap, row_width, width);
    });
  }
  if (any_tail) {
    launch(stream, "compress_kv: tails", store_tails, {dim3(n_tokens), dim3(kThreads)}, kv, gate,
           table, n_sequences, row_width);
  }
}

}  // namespace hadal::kernels::cuda
