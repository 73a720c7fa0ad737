#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include <map>
#include <mutex>

#include "core/error.h"

namespace hadal::kernels::cuda {

void check_launch(const char* name) {
  const cudaError_t result = cudaGetLastError();
  if (result == cudaSuccess) return;
  throw Error(ErrorCode::device,
              fmt::format("kernel {}: {} ({}); after an error on the GPU a process must start anew",
                          name, cudaGetErrorString(result), cudaGetErrorName(result)));
}

void allow_shared_memory(const void* kernel, int bytes) {
  static std::mutex mutex;
  static std::map<const void*, int> allowed;
  const std::lock_guard lock(mutex);
  int& present = allowed[kernel];
  if (present >= bytes) return;
  const cudaError_t result =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (result != cudaSuccess) {
    throw Error(ErrorCode::device,
                fmt::format("a kernel wants {} bytes of shared memory a block: {} ({})", bytes,
                            cudaGetErrorString(result), cudaGetErrorName(result)));
  }
  present = bytes;
}

}  // namespace hadal::kernels::cuda
