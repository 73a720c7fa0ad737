// The kernels for many tokens, multiplied as E4M3.
#include "kernels/cuda/device/matmul_wgmma_launch.cuh"

namespace hadal::kernels::cuda {

void launch_wgmma_e4m3(Stream& stream, const Matmul& m, bool pair) {
  if (m.shape.format == WeightFormat::fp4)
    return launch_wgmma<WeightFormat::fp4, true>(stream, m, pair);
  HADAL_CHECK(m.shape.format == WeightFormat::fp8);
  launch_wgmma<WeightFormat::fp8, true>(stream, m, pair);
}

}  // namespace hadal::kernels::cuda
