// The topk best of each row of scores, exactly. A cluster of 1 or 8 blocks for a row: every block
// keeps its share in shared memory, digits of 8 bits are counted from the top, and the blocks add
// up each other's counts, until the topk-th largest key is known. Then each block lists its part:
// what is above that key, and of those equal to it the lowest, as many as are wanted. Only
// integers are added, so nothing here depends on order.
#include <cooperative_groups.h>

#include "kernels/cuda/device/index_topk.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda::indexer {

namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 256;
constexpr int kMine = 8;  // consecutive keys of a thread when they are listed
constexpr int kClusterBlocks = 8;
constexpr int kOneBlockKeys = 16384;         // more go to a cluster
constexpr int kSharedKeyBytes = 128 * 1024;  // longer shares are read again for each digit

// What one block counts and the others of its cluster read.
struct Counts {
  std::uint32_t bins[2][kBins];  // of digits, in turn: a bin may be reset while others still read
  std::uint32_t above, equal;
};

// Which bin holds the need-th largest of `bins`, and how many of that bin are needed. One warp.
struct Found {
  std::uint32_t bin, need;
};
__device__ void find_bin(const std::uint32_t* bins, std::uint32_t need, Found* found) {
  constexpr int kLaneBins = kBins / 32;
  const int lane = static_cast<int>(threadIdx.x);
  const int top = kBins - 1 - lane * kLaneBins;  // a lane's bins, downwards
  std::uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kLaneBins; ++i) mine += bins[top - i];
  std::uint32_t through = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t lower = __shfl_up_sync(0xffffffffu, through, step);
    if (lane >= step) through += lower;
  }
  std::uint32_t above = through - mine;
  if (above >= need || through < need) return;
  for (int i = 0; i < kLaneBins; ++i) {
    if (above + bins[top - i] >= need) {
      *found = {static_cast<std::uint32_t>(top - i), need - above};
      return;
    }
    above += bins[top - i];
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const Key* scores, std::int64_t stride, const ScoreRow* table, int topk,
                  std::int32_t* selected, int shared_keys) {
  extern __shared__ __align__(16) std::byte dynamic[];
  __shared__ Counts counts;
  __shared__ std::uint32_t totals[kBins];
  __shared__ Found found;
  __shared__ std::uint32_t warp_counts[kWarps];
  const cg::cluster_group cluster = cg::this_cluster();
  const auto n_blocks = static_cast<int>(cluster.num_blocks());
  const auto rank = static_cast<int>(cluster.block_rank());
  const int thread = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.x) / n_blocks;
  const ScoreRow of = table[row];
  const int share = ((of.n + n_blocks - 1) / n_blocks + kMine - 1) / kMine * kMine;
  const int begin = min(of.n, rank * share), count = min(of.n, begin + share) - begin;

  const Key* keys = scores + row * stride + begin;
  if (count <= shared_keys) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(Key));
    auto* mine = reinterpret_cast<Key*>(dynamic);
    // Whole 16 bytes: what lies behind the share is scratch too, and nobody looks at it.
    for (int i = thread * kWide; i < count; i += kThreads * kWide) {
      *reinterpret_cast<uint4*>(mine + i) = *reinterpret_cast<const uint4*>(keys + i);
    }
    keys = mine;
  }
  if (thread == 0) counts.above = counts.equal = 0;

  constexpr int kBits = 8 * static_cast<int>(sizeof(Key));
  std::uint32_t prefix = 0;                      // the digits found so far
  auto need = static_cast<std::uint32_t>(topk);  // how many of those that begin with them
  for (int shift = kBits - 8; shift >= 0; shift -= 8) {
    std::uint32_t* bins = counts.bins[shift / 8 % 2];
    if (thread < kBins) bins[thread] = 0;
    __syncthreads();
    for (int i = thread; i < count; i += kThreads) {
      const std::uint32_t key = keys[i];
      const bool begins = shift == kBits - 8 || key >> (shift + 8) == prefix;
      if (begins) atomicAdd(&bins[key >> shift & 0xffu], 1u);
    }
    cluster.sync();
    if (thread < kBins) {
      std::uint32_t total = 0;
      for (int b = 0; b < n_blocks; ++b) total += cluster.map_shared_rank(bins, b)[thread];
      totals[thread] = total;
    }
    __syncthreads();
    if (thread < 32) find_bin(totals, need, &found);
    __syncthreads();
    prefix = prefix << 8 | found.bin;
    need = found.need;
  }

  // Counts of this block, for those that come after it.
  std::uint32_t above = 0, equal = 0;
  for (int i = thread; i < count; i += kThreads) {
    above += keys[i] > prefix ? 1u : 0u;
    equal += keys[i] == prefix ? 1u : 0u;
  }
  above = __reduce_add_sync(0xffffffffu, above);
  equal = __reduce_add_sync(0xffffffffu, equal);
  if (thread % 32 == 0) {
    atomicAdd(&counts.above, above);
    atomicAdd(&counts.equal, equal);
  }
  cluster.sync();
  std::uint32_t above_before = 0, equal_before = 0;
  for (int b = 0; b < rank; ++b) {
    const Counts* theirs = cluster.map_shared_rank(&counts, b);
    above_before += theirs->above;
    equal_before += theirs->equal;
  }
  cluster.sync();  // nobody leaves while others read its counts

  std::int32_t* out = selected + std::int64_t{of.token} * topk;
  for (int base = 0; base < count; base += kThreads * kMine) {
    const int i0 = base + thread * kMine;
    std::uint32_t mine = 0;  // above in the low half, equal in the high half: at most 4,096 each
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      if (i0 + k >= count) continue;
      mine += (keys[i0 + k] > prefix ? 1u : 0u) + (keys[i0 + k] == prefix ? 0x10000u : 0u);
    }
    std::uint32_t through = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::uint32_t lower = __shfl_up_sync(0xffffffffu, through, step);
      if (thread % 32 >= step) through += lower;
    }
    if (thread % 32 == 31) warp_counts[thread / 32] = through;
    __syncthreads();
    std::uint32_t before = through - mine, all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < thread / 32) before += warp_counts[w];
      all += warp_counts[w];
    }
    std::uint32_t n_above = above_before + (before & 0xffffu);
    std::uint32_t n_equal = equal_before + (before >> 16);
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      if (i0 + k >= count) continue;
      const std::uint32_t key = keys[i0 + k];
      const std::uint32_t at = n_above + min(n_equal, need);
      if (key > prefix || (key == prefix && n_equal < need)) out[at] = begin + i0 + k;
      n_above += key > prefix ? 1u : 0u;
      n_equal += key == prefix ? 1u : 0u;
    }
    above_before += all & 0xffffu;
    equal_before += all >> 16;
    __syncthreads();  // warp_counts have been read
  }
}

template <class Key>
void launch_select(Stream& stream, const Key* scores, std::int64_t stride, const ScoreRow* rows,
                   std::int64_t n_rows, std::int64_t n_keys, std::int32_t* selected,
                   std::int64_t topk) {
  const int cluster = n_keys > kOneBlockKeys ? kClusterBlocks : 1;
  const auto share = static_cast<int>(ceil_div(ceil_div(n_keys, cluster), kMine) * kMine);
  const int bytes = static_cast<int>(ceil_div(share * std::int64_t{sizeof(Key)}, 16) * 16);
  const bool fits = bytes <= kSharedKeyBytes;
  launch(stream, "index_topk: selection", select_kernel<Key>,
         {.blocks = dim3(static_cast<unsigned>(n_rows * cluster)),
          .threads = dim3(kThreads),
          .shared_bytes = fits ? bytes : 0,
          .cluster = cluster},
         scores, stride, rows, static_cast<int>(topk), selected, fits ? share : 0);
}

}  // namespace

void select_entries(Stream& stream, const std::uint16_t* scores, std::int64_t stride,
                    const ScoreRow* rows, std::int64_t n_rows, std::int64_t n_keys,
                    std::int32_t* selected, std::int64_t topk) {
  launch_select(stream, scores, stride, rows, n_rows, n_keys, selected, topk);
}
void select_entries(Stream& stream, const std::uint32_t* scores, std::int64_t stride,
                    const ScoreRow* rows, std::int64_t n_rows, std::int64_t n_keys,
                    std::int32_t* selected, std::int64_t topk) {
  launch_select(stream, scores, stride, rows, n_rows, n_keys, selected, topk);
}

}  // namespace hadal::kernels::cuda::indexer
