// The kernels for many tokens, multiplied as bf16.
#include "kernels/cuda/device/matmul_wgmma_launch.cuh"

namespace hadal::kernels::cuda {

void launch_wgmma_bf16(Stream& stream, const Matmul& m, bool pair) {
  if (m.shape.format == WeightFormat::bf16)
    return launch_wgmma<WeightFormat::bf16, false>(stream, m, pair);
  HADAL_CHECK(m.shape.format == WeightFormat::fp8);
  launch_wgmma<WeightFormat::fp8, false>(stream, m, pair);
}

}  // namespace hadal::kernels::cuda
