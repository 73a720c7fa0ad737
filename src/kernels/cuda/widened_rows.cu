// One warp a row; where a row lies is a binary search over the runs.
#include "kernels/cuda/widened_rows.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / 32;

struct DeviceRun {
  DeviceRows rows;
  std::int64_t out_row, first, modulus;
};

template <class Out>
__global__ void __launch_bounds__(kThreads)
    widen_rows_kernel(Out* out, const DeviceRun* runs, int n_runs, std::int64_t n_rows, int width) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (row >= n_rows) return;
  int low = 0, high = n_runs;  // the last run that begins at or before the row
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (runs[middle].out_row <= row ? low : high) = middle;
  }
  const DeviceRun run = runs[low];
  std::int64_t at = run.first + row - run.out_row;
  if (run.modulus > 0) at %= run.modulus;
  const std::byte* const from = run.rows.row_data(at);
  const std::byte* const scales = run.rows.row_scale(at);
  for (int c = static_cast<int>(threadIdx.x % 32); c < width; c += 32) {
    put(out[row * width + c], decode_value(run.rows, from, scales, c));
  }
}

}  // namespace

Tensor widened_rows(Stream& stream, std::span<const RowRun> runs, std::int64_t width,
                    DType wanted) {
  std::vector<DeviceRun> table;
  std::int64_t n_rows = 0;
  for (const RowRun& run : runs) {
    if (run.count == 0) continue;
    HADAL_CHECK(run.rows.format.width == width);
    table.push_back({device_rows(stream, run.rows), n_rows, run.first, run.modulus});
    n_rows += run.count;
  }
  Tensor out = stream.cuda().memory().empty({std::max<std::int64_t>(n_rows, 1), width}, wanted);
  if (n_rows == 0) return out;
  const DeviceRun* staged = stream.cuda().stage(std::span<const DeviceRun>(table));
  dispatch_activation(wanted, [&]<class Out>() {
    launch(stream, "widen_rows", widen_rows_kernel<Out>,
           {dim3(blocks_for(n_rows, kRowsPerBlock)), dim3(kThreads)}, data<Out>(out), staged,
           static_cast<int>(table.size()), n_rows, static_cast<int>(width));
  });
  return out;
}

}  // namespace hadal::kernels::cuda
