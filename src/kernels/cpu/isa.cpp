#include "kernels/cpu/isa.h"

#include <fmt/format.h>

#include <array>
#include <atomic>

#include "core/error.h"

namespace hadal::kernels::cpu {

namespace {

constexpr std::array<Isa, 4> kAllIsas = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
constexpr int kUndecided = -1;
std::atomic<int> chosen{kUndecided};  // process-wide by contract: see set_isa

}  // namespace

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

std::optional<Isa> parse_isa(std::string_view name) {
  for (const Isa isa : kAllIsas) {
    if (name == to_string(isa)) return isa;
  }
  return std::nullopt;
}

bool has_isa(Isa isa) {
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wide registers.
  // F16C, which clang 14 cannot ask for, is older than AVX2 on every CPU that has both.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

Isa best_isa() {
  Isa best = Isa::portable;
  for (const Isa isa : kAllIsas) {
    if (has_isa(isa)) best = isa;
  }
  return best;
}

void set_isa(Isa isa) {
  if (!has_isa(isa)) {
    throw Error(ErrorCode::unsupported,
                fmt::format("instruction set {} is not available here; the best this CPU has is {}",
                            to_string(isa), to_string(best_isa())));
  }
  chosen.store(static_cast<int>(isa));
}

Isa active_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa == kUndecided) {
    isa = static_cast<int>(best_isa());
    int undecided = kUndecided;
    if (!chosen.compare_exchange_strong(undecided, isa)) isa = undecided;
  }
  return static_cast<Isa>(isa);
}

}  // namespace hadal::kernels::cpu
