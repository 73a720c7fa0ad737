// The last step of sums over tokens: partial sums of chunks, added up in their order.
#pragma once

#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

inline constexpr int kColumnSumThreads = 128;

static __global__ void __launch_bounds__(kColumnSumThreads)
    column_sum_kernel(float* to, const float* rows, std::int64_t n_rows, std::int64_t n) {
  const std::int64_t column = std::int64_t{blockIdx.x} * kColumnSumThreads + threadIdx.x;
  if (column >= n) return;
  float sum = to[column];
#pragma unroll 8
  for (std::int64_t r = 0; r < n_rows; ++r) sum += rows[r * n + column];
  to[column] = sum;
}

// to[i] += sum over rows of rows[r, i], ascending.
inline void add_column_sums(Stream& stream, float* to, const float* rows, std::int64_t n_rows,
                            std::int64_t n) {
  launch(stream, "add_column_sums", column_sum_kernel,
         {dim3(blocks_for(n, kColumnSumThreads)), dim3(kColumnSumThreads)}, to, rows, n_rows, n);
}

}  // namespace hadal::kernels::cuda
