#include "kernels/registry.h"

namespace hadal::kernels::cuda {

void register_kernels(KernelRegistry&) {}

}  // namespace hadal::kernels::cuda
