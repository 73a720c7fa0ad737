// Assignments (token, slot) sorted by expert for gradients: tokens ascending inside an expert,
// every expert's rows padded to a multiple of kRowPad so that its products have few different
// sizes.
#pragma once

#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

inline constexpr std::int64_t kRowPad = 16;

namespace gradient_rows {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

// Block e counts the assignments of expert e.
static __global__ void __launch_bounds__(kThreads)
    count_kernel(std::int32_t* counts, const std::int32_t* experts, std::int32_t n) {
  __shared__ std::int32_t warps[kThreads / 32];
  std::int32_t count = 0;
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < n; i += kThreads) {
    count += experts[i] == static_cast<std::int32_t>(blockIdx.x) ? 1 : 0;
  }
  count = __reduce_add_sync(0xffffffffu, count);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) count += warps[w];
  counts[blockIdx.x] = count;
}

struct Sorted {
  std::int32_t* assignment;  // [n_rows] token * topk + slot, -1 in the padding
  std::int32_t* row_of;      // [n_tokens * topk]
};

// Block e gives the assignments of expert e their rows, in order.
static __global__ void __launch_bounds__(kThreads)
    place_kernel(Sorted out, const std::int32_t* first_row, const std::int32_t* experts,
                 std::int32_t n) {
  __shared__ std::int32_t warps[kThreads / 32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  std::int32_t row = first_row[blockIdx.x];
  for (std::int32_t base = 0; base < n; base += kThreads * kPerThread) {
    const std::int32_t begin = base + static_cast<std::int32_t>(threadIdx.x) * kPerThread;
    bool mine[kPerThread];
    std::int32_t count = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      mine[j] = begin + j < n && experts[begin + j] == static_cast<std::int32_t>(blockIdx.x);
      count += mine[j] ? 1 : 0;
    }
    std::int32_t before = count;  // inclusive, then exclusive
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::int32_t other = __shfl_up_sync(0xffffffffu, before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) warps[warp] = before;
    before -= count;
    __syncthreads();
    std::int32_t total = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) before += warps[w];
      total += warps[w];
    }
    std::int32_t at = row + before;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (!mine[j]) continue;
      out.assignment[at] = begin + j;
      out.row_of[begin + j] = at++;
    }
    row += total;
    __syncthreads();
  }
  const std::int32_t end = first_row[blockIdx.x + 1];
  if (row + static_cast<std::int32_t>(threadIdx.x) < end) {
    out.assignment[row + static_cast<std::int32_t>(threadIdx.x)] = -1;
  }
}

}  // namespace gradient_rows
}  // namespace hadal::kernels::cuda
