#pragma once

#include <cstdint>
#include <vector>

namespace hadal::kernels::cpu {

// Lists the topk largest of scores[0, n) in out[0, topk): ties to the lower index, ascending, -1 at
// the end. `scratch` is overwritten.
void select_topk(const float* scores, std::int64_t n, std::int64_t topk, std::int32_t* out,
                 std::vector<float>& scratch);

}  // namespace hadal::kernels::cpu
