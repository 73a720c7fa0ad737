#include "kernels/moe.h"

namespace hadal::kernels::cpu {

void expert_load(Stream&, const ExpertLoadArgs& a) {
  auto* load = a.load.data<std::int64_t>();
  const auto* expert = a.experts.data<const std::int32_t>();
  for (std::int64_t i = 0; i < a.experts.numel(); ++i) {
    HADAL_CHECK(expert[i] >= 0 && expert[i] < a.load.numel());
    ++load[expert[i]];
  }
}

}  // namespace hadal::kernels::cpu
