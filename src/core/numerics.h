#pragma once

#include <cstdint>

namespace hadal {

// official  every rounding of the published code: bf16 between operations, activations of FP8 and
//           FP4 linears in E4M3, KV in E4M3, indexer in FP4. What a checkpoint was trained for.
// fp32      plain f32 maths and caches, for gradients and for comparing with other implementations.
enum class Numerics : std::uint8_t { official, fp32 };

[[nodiscard]] inline const char* to_string(Numerics n) {
  return n == Numerics::official ? "official" : "fp32";
}

}  // namespace hadal
