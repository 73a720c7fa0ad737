// How the kernels of matmul_wgmma.cuh are launched: a block of threads a multiprocessor.
#pragma once

#include <algorithm>

#include "kernels/cuda/device/matmul_launch.cuh"
#include "kernels/cuda/device/matmul_wgmma.cuh"

namespace hadal::kernels::cuda {

template <WeightFormat F, bool kE4m3>
void launch_wgmma(Stream& stream, const Matmul& m, bool pair) {
  HADAL_CHECK(m.packed != nullptr && m.tile_rows <= kTileRows);
  const dim3 tiles = matmul_blocks(m, pair ? kWgmmaWeightRows / 2 : kWgmmaWeightRows);
  const auto most = std::int64_t{tiles.x} * tiles.y * tiles.z;
  HADAL_CHECK(most <= INT32_MAX);
  const auto blocks = std::min<std::int64_t>(most, stream.cuda().device().n_multiprocessors);
  const Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(kWgmmaThreads),
                  static_cast<int>(sizeof(WgmmaShared<F, kE4m3>)) + 1024};
  launch(stream, pair ? "matmul_wgmma_swiglu" : "matmul_wgmma",
         pair ? wgmma_kernel<F, kE4m3, true> : wgmma_kernel<F, kE4m3, false>, grid, m);
}

}  // namespace hadal::kernels::cuda
