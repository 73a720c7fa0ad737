// A thread a column of an entry: it goes over the entry's rows three times, for the peak, for the
// sums and for the gradients; a window is small enough to stay in the caches. The position bias
// adds up its tokens in chunks of a fixed number of windows, then the chunks in their order.
#include <algorithm>
#include <vector>

#include "kernels/compress_kv.h"
#include "kernels/cuda/device/column_sum.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kChunkWindows = 64;

struct Sequence {
  std::int64_t begin;        // row of kv
  std::int64_t first_entry;  // row of dentries
  std::int64_t first_block;  // blockIdx.x of its first entry
};

struct Pool {
  float *dkv, *dgate;
  const float *dentries, *kv, *gate;
  const Sequence* sequences;
  int n_sequences, ratio, width, row_width;
  bool overlap;
};

// blockIdx: an entry, columns.
__global__ void __launch_bounds__(kThreads) pool_backward_kernel(const Pool a) {
  const int column = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (column >= a.width) return;
  int low = 0, high = a.n_sequences - 1;  // the last sequence that begins here or before
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.sequences[middle].first_block <= blockIdx.x)
      low = middle;
    else
      high = middle - 1;
  }
  const Sequence s = a.sequences[low];
  const std::int64_t entry = std::int64_t{blockIdx.x} - s.first_block;
  const std::int64_t row0 = s.begin + entry * a.ratio;
  const float dy = a.dentries[(s.first_entry + entry) * a.width + column];
  // fn(offset) of every row: the window before in its first half, then the window itself.
  const auto each_row = [&](auto&& fn) {
    if (a.overlap && entry > 0) {
      const std::int64_t before = (row0 - a.ratio) * a.row_width + column;
#pragma unroll 4
      for (int r = 0; r < a.ratio; ++r) fn(before + std::int64_t{r} * a.row_width);
    }
    const std::int64_t own = row0 * a.row_width + (a.overlap ? a.width : 0) + column;
#pragma unroll 4
    for (int r = 0; r < a.ratio; ++r) fn(own + std::int64_t{r} * a.row_width);
  };
  float peak = -INFINITY, sum = 0.0f, value = 0.0f;
  each_row([&](std::int64_t at) { peak = fmaxf(peak, a.gate[at]); });
  each_row([&](std::int64_t at) {
    const float p = expf(a.gate[at] - peak);
    sum += p;
    value = fmaf(p, a.kv[at], value);
  });
  const float inverse = 1.0f / sum;
  value *= inverse;
  each_row([&](std::int64_t at) {
    const float g = dy * (expf(a.gate[at] - peak) * inverse);
    a.dkv[at] = g;
    a.dgate[at] = g * (a.kv[at] - value);
  });
}

struct Chunk {
  std::int64_t begin, end;  // rows, from the first of a window on
};

// partial[chunk, r, column] = the sum of dgate over the chunk's positions r, ascending.
__global__ void __launch_bounds__(kThreads)
    bias_kernel(float* partial, const float* dgate, const Chunk* chunks, int ratio, int row_width) {
  const int column = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (column >= row_width) return;
  const int r = static_cast<int>(blockIdx.x % static_cast<unsigned>(ratio));
  const Chunk chunk = chunks[blockIdx.x / static_cast<unsigned>(ratio)];
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t t = chunk.begin + r; t < chunk.end; t += ratio) {
    sum += dgate[t * row_width + column];
  }
  partial[std::int64_t{blockIdx.x} * row_width + column] = sum;
}

}  // namespace

void compress_kv_backward(Stream& stream, const CompressKvBackwardArgs& a) {
  const std::int64_t ratio = a.ratio, row_width = a.kv.dim(1), width = a.dentries.dim(1);
  stream.zero(a.dkv);
  stream.zero(a.dgate);
  std::vector<Sequence> sequences;
  std::vector<Chunk> chunks;
  std::int64_t n_entries = 0;
  for (const CompressSequence& s : a.sequences) {
    for (std::int64_t t = s.begin; t < s.end; t += kChunkWindows * ratio) {
      chunks.push_back({t, std::min(t + kChunkWindows * ratio, s.end)});
    }
    if (s.end - s.begin < ratio) continue;
    sequences.push_back({s.begin, s.first_entry, n_entries});
    n_entries += (s.end - s.begin) / ratio;
  }
  if (n_entries == 0) return;  // and every dgate is 0
  const Pool pool{.dkv = data<float>(a.dkv),
                  .dgate = data<float>(a.dgate),
                  .dentries = data<const float>(a.dentries),
                  .kv = data<const float>(a.kv),
                  .gate = data<const float>(a.gate),
                  .sequences = stream.cuda().stage(std::span<const Sequence>(sequences)),
                  .n_sequences = static_cast<int>(sequences.size()),
                  .ratio = static_cast<int>(ratio),
                  .width = static_cast<int>(width),
                  .row_width = static_cast<int>(row_width),
                  .overlap = a.overlap};
  launch(stream, "compress_kv_backward", pool_backward_kernel,
         {dim3(blocks_for(n_entries, 1), blocks_for(width, kThreads)), dim3(kThreads)}, pool);
  if (!a.dposition_bias) return;
  const auto n_chunks = static_cast<std::int64_t>(chunks.size());
  const Tensor scratch = stream.cuda().scratch(n_chunks * ratio * row_width * 4);
  auto* const partial = reinterpret_cast<float*>(scratch.bytes());
  launch(stream, "compress_kv_backward", bias_kernel,
         {dim3(blocks_for(n_chunks * ratio, 1), blocks_for(row_width, kThreads)), dim3(kThreads)},
         partial, data<const float>(a.dgate), stream.cuda().stage(std::span<const Chunk>(chunks)),
         static_cast<int>(ratio), static_cast<int>(row_width));
  add_column_sums(stream, data<float>(a.dposition_bias), partial, n_chunks, ratio * row_width);
}

}  // namespace hadal::kernels::cuda
