// A stable counting sort of assignments by expert. Positions follow from counts alone, so the
// result does not depend on the order in which threads run.
//
// A block of threads has 1,024 assignments, one a thread. Up to 1,024 of them are one launch;
// more are three: counts a block, the places of all blocks and experts, and the scatter.
#include <algorithm>
#include <string>

#include "kernels/cuda/device/expert_rows.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

struct Sort {
  const std::int32_t* experts;
  const float* weights;
  int n, topk, n_experts, tile_rows, n_blocks;
  std::int32_t* counts;  // [n_blocks][n_experts], then the same summed over the blocks before
  std::int32_t *token, *row_of, *expert_row, *n_tiles;
  float* weight;
  TokenTile* tiles;
};

__device__ int expert_at(const Sort& s, int i) {
  if (i >= s.n) return -1;
  const int expert = s.experts[i];
  if (expert < 0 || expert >= s.n_experts) __trap();
  return expert;
}

// How many assignments of the block before this thread's have its expert; totals[e] is how many
// have expert e. warp_counts is [kWarps][n_experts].
__device__ int rank_in_block(int expert, int n_experts, std::uint16_t* warp_counts, int* totals) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kWarps * n_experts; i += kThreads) warp_counts[i] = 0;
  __syncthreads();
  const unsigned peers = __match_any_sync(0xffffffffu, expert);
  const int rank = __popc(peers & ((1u << lane) - 1u));
  if (expert >= 0 && rank == 0) {
    warp_counts[warp * n_experts + expert] = static_cast<std::uint16_t>(__popc(peers));
  }
  __syncthreads();
  for (int e = thread; e < n_experts; e += kThreads) {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int count = warp_counts[w * n_experts + e];
      warp_counts[w * n_experts + e] = static_cast<std::uint16_t>(sum);
      sum += count;
    }
    totals[e] = sum;
  }
  __syncthreads();
  return expert < 0 ? 0 : rank + warp_counts[warp * n_experts + expert];
}

__device__ __host__ constexpr int round_up_rows(int n) {
  return (n + kNarrowRows - 1) / kNarrowRows * kNarrowRows;
}

// Places the experts one after another: totals[e] becomes the first row of e; writes expert_row
// and the tiles.
__device__ void place_experts(const Sort& s, int* totals) {
  __shared__ unsigned long long warp_sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  unsigned long long before = 0;  // rows in the upper half, tiles in the lower
  for (int base = 0; base < s.n_experts; base += kThreads) {
    const int e = base + thread;
    const int count = e < s.n_experts ? totals[e] : 0;
    const int padded = round_up_rows(count);
    const int n_tiles = (count + s.tile_rows - 1) / s.tile_rows;
    const unsigned long long own =
        static_cast<unsigned long long>(padded) << 32 | static_cast<unsigned>(n_tiles);
    unsigned long long sum = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const unsigned long long x = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += x;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    unsigned long long all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) sum += all;
      all += warp_sums[w];
    }
    __syncthreads();
    if (e < s.n_experts) {
      const unsigned long long at = before + sum - own;
      const int row = static_cast<int>(at >> 32), tile = static_cast<int>(at & 0xffffffffu);
      totals[e] = row;
      s.expert_row[e] = row;
      const int tile_rows = n_tiles > 0 ? round_up_rows((count + n_tiles - 1) / n_tiles) : 0;
      for (int i = 0; i < n_tiles; ++i) {
        const int begin = i * tile_rows;
        s.tiles[tile + i] = {e, row + begin, min(tile_rows, count - begin)};
      }
      for (int i = row + count; i < row + padded; ++i) s.token[i] = -1;
    }
    before += all;
  }
  if (thread == 0) {
    s.expert_row[s.n_experts] = static_cast<int>(before >> 32);
    *s.n_tiles = static_cast<int>(before & 0xffffffffu);
  }
  __syncthreads();
}

__device__ void put_row(const Sort& s, int i, int row) {
  s.token[row] = i / s.topk;
  s.weight[row] = s.weights[i];
  s.row_of[i] = row;
}

__global__ __launch_bounds__(kThreads) void sort_kernel(const Sort s) {
  extern __shared__ int shared[];
  const int i = static_cast<int>(threadIdx.x);
  const int expert = expert_at(s, i);
  const int rank = rank_in_block(expert, s.n_experts,
                                 reinterpret_cast<std::uint16_t*>(shared + s.n_experts), shared);
  place_experts(s, shared);
  if (expert >= 0) put_row(s, i, shared[expert] + rank);
}

__global__ __launch_bounds__(kThreads) void count_kernel(const Sort s) {
  extern __shared__ int shared[];
  for (int e = static_cast<int>(threadIdx.x); e < s.n_experts; e += kThreads) shared[e] = 0;
  __syncthreads();
  const int expert = expert_at(s, static_cast<int>(blockIdx.x * kThreads + threadIdx.x));
  if (expert >= 0) atomicAdd(shared + expert, 1);
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < s.n_experts; e += kThreads) {
    s.counts[static_cast<int>(blockIdx.x) * s.n_experts + e] = shared[e];
  }
}

__global__ __launch_bounds__(kThreads) void place_kernel(const Sort s) {
  extern __shared__ int shared[];
  for (int e = static_cast<int>(threadIdx.x); e < s.n_experts; e += kThreads) {
    int sum = 0;
    for (int b = 0; b < s.n_blocks; ++b) {
      std::int32_t& count = s.counts[b * s.n_experts + e];
      const int own = count;
      count = sum;
      sum += own;
    }
    shared[e] = sum;
  }
  __syncthreads();
  place_experts(s, shared);
}

__global__ __launch_bounds__(kThreads) void scatter_kernel(const Sort s) {
  extern __shared__ int shared[];
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int expert = expert_at(s, i);
  const int rank = rank_in_block(expert, s.n_experts,
                                 reinterpret_cast<std::uint16_t*>(shared + s.n_experts), shared);
  if (expert < 0) return;
  const int before = s.counts[static_cast<int>(blockIdx.x) * s.n_experts + expert];
  put_row(s, i, s.expert_row[expert] + before + rank);
}

}  // namespace

ExpertRows sort_by_expert(Stream& stream, const TensorView& experts, const TensorView& weights,
                          std::int64_t n_experts, int tile_rows) {
  const std::int64_t n = experts.numel();
  constexpr std::int64_t kMostExperts = 3000;
  if (n_experts > kMostExperts || n > INT32_MAX / 4) {
    throw Error(ErrorCode::unsupported, "the GPU sorts up to " + std::to_string(kMostExperts) +
                                            " experts and " + std::to_string(INT32_MAX / 4) +
                                            " assignments in a step, and was given " +
                                            std::to_string(n_experts) + " and " +
                                            std::to_string(n) + "; use smaller batches");
  }
  HADAL_CHECK(n > 0 && weights.numel() == n);
  Sort s{};
  s.experts = data<const std::int32_t>(experts);
  s.weights = data<const float>(weights);
  s.n = static_cast<int>(n);
  s.topk = static_cast<int>(experts.dim(1));
  s.n_experts = static_cast<int>(n_experts);
  s.tile_rows = tile_rows;
  s.n_blocks = static_cast<int>(ceil_div(n, kThreads));
  const std::int64_t max_tiles = n / tile_rows + std::min(n, n_experts);
  const std::int64_t max_rows =
      round_up_rows(static_cast<int>(n + (kNarrowRows - 1) * std::min(n, n_experts)));
  const std::int64_t n_counts = s.n_blocks > 1 ? s.n_blocks * n_experts : 0;

  ExpertRows rows;
  constexpr std::int64_t kTileWords = sizeof(TokenTile) / 4;
  rows.memory = stream.cuda().scratch(
      4 * (2 * max_rows + n + n_experts + 1 + 1 + max_tiles * kTileWords + n_counts));
  auto* at = reinterpret_cast<std::int32_t*>(rows.memory.bytes());
  const auto take = [&](std::int64_t words) {
    std::int32_t* const here = at;
    at += words;
    return here;
  };
  rows.token = s.token = take(max_rows);
  rows.weight = s.weight = reinterpret_cast<float*>(take(max_rows));
  rows.row_of = s.row_of = take(n);
  rows.expert_row = s.expert_row = take(n_experts + 1);
  rows.n_tiles = s.n_tiles = take(1);
  rows.tiles = s.tiles = reinterpret_cast<TokenTile*>(take(max_tiles * kTileWords));
  s.counts = take(n_counts);
  rows.max_rows = static_cast<int>(max_rows);
  rows.max_tiles = static_cast<int>(max_tiles);
  rows.tile_rows = tile_rows;

  const int totals = s.n_experts * 4, ranks = totals + kWarps * s.n_experts * 2;
  const dim3 threads(kThreads), blocks(static_cast<unsigned>(s.n_blocks));
  if (s.n_blocks == 1) {
    launch(stream, "sort_by_expert", sort_kernel, {dim3(1), threads, ranks}, s);
    return rows;
  }
  launch(stream, "sort_by_expert counts", count_kernel, {blocks, threads, totals}, s);
  launch(stream, "sort_by_expert places", place_kernel, {dim3(1), threads, totals}, s);
  launch(stream, "sort_by_expert scatter", scatter_kernel, {blocks, threads, ranks}, s);
  return rows;
}

}  // namespace hadal::kernels::cuda
