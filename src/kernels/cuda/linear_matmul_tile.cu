// The kernels for many tokens.
#include "kernels/cuda/device/matmul_launch.cuh"
#include "kernels/cuda/device/matmul_tile.cuh"

namespace hadal::kernels::cuda {

namespace {

template <WeightFormat F, int kN>
void launch_tiles_of(Stream& stream, const Matmul& m, bool pair) {
  const int rows = pair ? kTileWeightRows / 2 : kTileWeightRows;
  const Grid grid{matmul_blocks(m, rows), dim3(kTileThreads),
                  static_cast<int>(sizeof(TileShared<F, kN>))};
  launch(stream, pair ? "matmul_tile_swiglu" : "matmul_tile",
         pair ? tile_kernel<F, kN, true> : tile_kernel<F, kN, false>, grid, m);
}

}  // namespace

void launch_tile(Stream& stream, const Matmul& m, bool pair) {
  dispatch_format(m.shape.format, [&]<WeightFormat F>() {
    if (m.tile_rows > kSmallTileRows)
      launch_tiles_of<F, kTileRows>(stream, m, pair);
    else
      launch_tiles_of<F, kSmallTileRows>(stream, m, pair);
  });
}

}  // namespace hadal::kernels::cuda
