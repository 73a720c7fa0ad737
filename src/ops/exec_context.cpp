#include "ops/exec_context.h"

namespace hadal {

double KernelProfile::total_seconds() const {
  double total = 0;
  for (const auto& [name, entry] : kernels) total += entry.seconds;
  return total;
}

}  // namespace hadal
