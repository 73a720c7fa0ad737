#pragma once

#include <cstdint>

namespace hadal {

// Whether a linear rounds its input to E4M3 with one ue8m0 scale per 128 columns first
// (architecture.md §5.1). Published FP8 and FP4 linears do; everything else multiplies the input
// as it is.
enum class ActivationQuant : std::uint8_t { none, fp8_block128 };

}  // namespace hadal
