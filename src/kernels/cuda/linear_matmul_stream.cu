// The kernels for few tokens.
#include "kernels/cuda/device/matmul_stream.cuh"

namespace hadal::kernels::cuda {

void launch_stream(Stream& stream, const Matmul& m, bool pair) {
  HADAL_CHECK(m.tile_rows == kStreamRows);
  const int token_tiles = m.tiles == nullptr && m.n_rows <= 8 ? 1 : 2;
  const Grid grid{
      matmul_blocks(m, kStreamWeightRows), dim3(kStreamThreads),
      static_cast<int>((pair ? 2 : 1) * stream_shared_bytes(m.shape.cols, token_tiles))};
  dispatch_format(m.shape.format, [&]<WeightFormat F>() {
    if (pair) {
      launch(stream, "matmul_stream_swiglu",
             token_tiles == 1 ? stream_kernel<F, 1, true> : stream_kernel<F, 2, true>, grid, m);
    } else {
      launch(stream, "matmul_stream",
             token_tiles == 1 ? stream_kernel<F, 1, false> : stream_kernel<F, 2, false>, grid, m);
    }
  });
}

}  // namespace hadal::kernels::cuda
