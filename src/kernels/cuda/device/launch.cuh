// How every kernel of this folder is launched, and what it shares.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "core/cuda/queue.h"
#include "core/device.h"

namespace hadal::kernels::cuda {

// Element types as kernels read them: f32 is float, bf16 is __nv_bfloat16.
template <class Fn>
void dispatch_activation(DType dtype, Fn&& fn) {
  if (dtype == DType::f32) {
    fn.template operator()<float>();
  } else {
    HADAL_CHECK(dtype == DType::bf16);
    fn.template operator()<__nv_bfloat16>();
  }
}

// The memory of a view as T; checks the size of an element, since bf16 has another name here.
template <class T>
T* data(const TensorView& x) {
  HADAL_CHECK(bits(x.dtype()) == static_cast<int>(8 * sizeof(T)));
  return reinterpret_cast<T*>(x.bytes());
}

// Throws Error device naming the kernel when the last launch was refused or an earlier one failed.
void check_launch(const char* name);
// Lets `kernel` have more than 48 KiB of dynamic shared memory; cheap when it has it already.
void allow_shared_memory(const void* kernel, int bytes);

struct Grid {
  dim3 blocks, threads;
  int shared_bytes = 0;
  int cluster = 1;  // blocks, along x, that run together and see each other's shared memory
};

// An empty grid is an empty batch: nothing is launched.
template <class... P, class... A>
void launch(Stream& stream, const char* name, void (*kernel)(P...), const Grid& grid, A&&... args) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared_bytes > 32 * 1024) {  // with what the kernel declares itself, perhaps 48 KiB
    allow_shared_memory(reinterpret_cast<const void*>(kernel), grid.shared_bytes);
  }
  const auto queue = static_cast<cudaStream_t>(stream.cuda().stream());
  if (grid.cluster > 1) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = static_cast<std::size_t>(grid.shared_bytes);
    config.stream = queue;
    config.attrs = &cluster;
    config.numAttrs = 1;
    (void)cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);  // checked below
  } else {
    kernel<<<grid.blocks, grid.threads, static_cast<unsigned>(grid.shared_bytes), queue>>>(
        std::forward<A>(args)...);
  }
  check_launch(name);
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
inline unsigned blocks_for(std::int64_t n, std::int64_t per_block) {
  return static_cast<unsigned>(ceil_div(n, per_block));
}

}  // namespace hadal::kernels::cuda
