// A block a chunk of 32,768 elements of any of the tensors, all in one launch.
#include "kernels/sum_squares.h"

#include "kernels/cuda/device/chunks.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kChunk = 32768;

struct Item {
  const float* x;
  std::int64_t n, first_chunk;
  bool in_groups;
};

template <bool kVector>
__device__ __forceinline__ double squares(const float* x, std::int64_t n) {
  constexpr int kN = 4;
  double sum = 0;
  float v[kN];
#pragma unroll 4
  for (std::int64_t at = std::int64_t{threadIdx.x} * kN; at < n; at += kThreads * kN) {
    load_group<kVector>(v, x, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i)
      sum = fma(static_cast<double>(v[i]), static_cast<double>(v[i]), sum);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(double* parts, const Item* items, int n_items) {
  __shared__ double shared[kThreads / 32];
  const Item item = items[item_of(items, n_items, blockIdx.x)];
  const std::int64_t begin = (std::int64_t{blockIdx.x} - item.first_chunk) * kChunk;
  const std::int64_t n = min(kChunk, item.n - begin);
  double sum =
      item.in_groups ? squares<true>(item.x + begin, n) : squares<false>(item.x + begin, n);
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

}  // namespace

void sum_squares(Stream& stream, const SumSquaresArgs& a) {
  HADAL_CHECK(a.tensors.size() == a.sums.size());
  if (a.tensors.empty()) return;
  std::vector<Item> items;
  std::vector<std::int64_t> first{0};
  for (const TensorView& t : a.tensors) {
    items.push_back({data<const float>(t), t.numel(), first.back(), in_groups(t.numel(), 4, t)});
    first.push_back(first.back() + ceil_div(t.numel(), kChunk));
  }
  const Tensor scratch =
      stream.cuda().scratch((first.back() + static_cast<std::int64_t>(items.size())) * 8);
  launch(stream, "sum_squares", sum_squares_kernel,
         {dim3(blocks_for(first.back(), 1)), dim3(kThreads)},
         reinterpret_cast<double*>(scratch.bytes()),
         stream.cuda().stage(std::span<const Item>(items)), static_cast<int>(items.size()));
  download_sums(stream, scratch, first, a.sums);
}

}  // namespace hadal::kernels::cuda
