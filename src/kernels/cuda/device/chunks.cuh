// Work on many tensors in one launch: a block has a chunk of one of them and leaves an f64 sum. The
// chunks of a tensor, and the order in which their sums are added up, follow from its size alone.
#pragma once

#include <span>
#include <vector>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

// The item that a block works on, of items with a `first_chunk` each, ascending from 0; a block
// beyond the chunks of the last one does not exist.
template <class Item>
__device__ __forceinline__ int item_of(const Item* items, int n_items, std::int64_t chunk) {
  int low = 0, high = n_items - 1;  // the last item that begins here or before
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (items[middle].first_chunk <= chunk)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

inline constexpr int kPartThreads = 256;

// sums[i] = the sum of parts[first[i], first[i + 1]).
static __global__ void __launch_bounds__(kPartThreads)
    sum_parts_kernel(double* sums, const double* parts, const std::int64_t* first) {
  __shared__ double shared[kPartThreads / 32];
  const std::int64_t begin = first[blockIdx.x], end = first[blockIdx.x + 1];
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kPartThreads) sum += parts[i];
  sum = block_sum<kPartThreads>(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Sums of the parts of first.size() - 1 items, in device memory.
inline void sum_parts(Stream& stream, double* sums, const double* parts,
                      const std::vector<std::int64_t>& first) {
  launch(stream, "sum_parts", sum_parts_kernel,
         {dim3(static_cast<unsigned>(first.size() - 1)), dim3(kPartThreads)}, sums, parts,
         stream.cuda().stage(std::span<const std::int64_t>(first)));
}

// The same, fetched. `scratch` holds the parts and has room for the sums after them.
inline void download_sums(Stream& stream, const Tensor& scratch,
                          const std::vector<std::int64_t>& first, std::span<double> sums) {
  auto* const parts = reinterpret_cast<double*>(scratch.bytes());
  double* const on_device = parts + first.back();
  sum_parts(stream, on_device, parts, first);
  stream.cuda().download(on_device, sums.data(), sums.size_bytes());
}

}  // namespace hadal::kernels::cuda
