// Which instructions the CPU kernels may use. Results of the tiers without bf16 dot products are
// equal to the bit; avx512_bf16 differs from them by f32 rounding alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace hadal::kernels::cpu {

enum class Isa : std::uint8_t {
  portable,     // what the compiler was told to assume; NEON on ARM
  avx2,         // AVX2, FMA, F16C
  avx512,       // AVX-512 F, BW, DQ, VL
  avx512_bf16,  // the same with VBMI and BF16 (Zen 4, Sapphire Rapids)
};

[[nodiscard]] const char* to_string(Isa isa);
[[nodiscard]] std::optional<Isa> parse_isa(std::string_view name);  // inverse of to_string

[[nodiscard]] bool has_isa(Isa isa);  // this CPU and this build
[[nodiscard]] Isa best_isa();         // the largest that has_isa

// Process-wide choice, for --isa and for tests; until it is called, best_isa() is active. Call it
// while no kernel runs. Throws unsupported when the CPU or the build lacks it.
void set_isa(Isa isa);
[[nodiscard]] Isa active_isa();

}  // namespace hadal::kernels::cpu
