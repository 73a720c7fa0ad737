// The kernels for few tokens, multiplied as E4M3.
#include "kernels/cuda/device/matmul_stream_e4m3.cuh"

namespace hadal::kernels::cuda {

namespace {

// Two blocks of threads on a multiprocessor keep memory busy; one does where products need more.
constexpr int kHalfShared = 113 * 1024, kAllShared = 226 * 1024;

int blocks_of(const Matmul& m) {
  return (m.shape.cols + kBlockCols - 1) / kBlockCols;
}
int bytes(const Matmul& m, bool pair, int token_tiles) {
  return stream_e4m3_layout(blocks_of(m), token_tiles, pair ? 2 : 1).end + 1024;
}

template <WeightFormat F>
void launch_as(Stream& stream, const Matmul& m, bool pair) {
  const int token_tiles = m.tile_rows / kNarrowRows;
  const Grid grid{matmul_blocks(m, kStreamWeightRows), dim3(kStreamThreads),
                  bytes(m, pair, token_tiles)};
  if (pair) {
    launch(stream, "matmul_stream_e4m3_swiglu",
           token_tiles == 1 ? stream_e4m3_kernel<F, 1, true> : stream_e4m3_kernel<F, 2, true>, grid,
           m);
  } else {
    launch(stream, "matmul_stream_e4m3",
           token_tiles == 1 ? stream_e4m3_kernel<F, 1, false> : stream_e4m3_kernel<F, 2, false>,
           grid, m);
  }
}

}  // namespace

int stream_e4m3_rows(const Matmul& m, bool pair) {
  const int turns = (blocks_of(m) + (pair ? 3 : 7)) / (pair ? 4 : 8);
  if (turns > kStreamMostBarriers) return 0;
  if (bytes(m, pair, 2) <= kHalfShared) return kStreamRows;
  return bytes(m, pair, 1) <= kAllShared ? kNarrowRows : 0;
}

void launch_stream_e4m3(Stream& stream, const Matmul& m, bool pair) {
  HADAL_CHECK(m.packed != nullptr && m.packed_scale != nullptr);
  HADAL_CHECK(m.tile_rows == kNarrowRows || m.tile_rows == kStreamRows);
  if (m.shape.format == WeightFormat::fp4) return launch_as<WeightFormat::fp4>(stream, m, pair);
  HADAL_CHECK(m.shape.format == WeightFormat::fp8);
  launch_as<WeightFormat::fp8>(stream, m, pair);
}

}  // namespace hadal::kernels::cuda
