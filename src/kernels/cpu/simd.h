// Plain loops that the compiler vectorises for each machine. With contraction off every clone
// computes the same bits, so an older CPU is slower and never different.
#pragma once

#include <cstdint>

#include "core/dtype.h"

// Named by feature, not by arch=: GCC refuses to inline a function of the default architecture into
// a clone for another one, and a loop that calls does not vectorise. Sanitizers cannot instrument
// the resolver that picks a clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define HADAL_SIMD_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define HADAL_SIMD_CLONES
#endif
// Compilers clone functions, not templates: a template over the element type is inlined into one
// cloned function for each type.
#define HADAL_SIMD_INLINE inline __attribute__((always_inline))

namespace hadal::kernels::cpu {

// Elements as f32, and back with one rounding. By reference to the bits: the compiler vectorises
// loads and stores of integers, not copies of a struct.
[[nodiscard]] HADAL_SIMD_INLINE float load(const float& x) {
  return x;
}
[[nodiscard]] HADAL_SIMD_INLINE float load(const bf16& x) {
  return std::bit_cast<float>(std::uint32_t{x.bits} << 16);
}
HADAL_SIMD_INLINE void put(float& to, float x) {
  to = x;
}
HADAL_SIMD_INLINE void put(bf16& to, float x) {
  to.bits = to_bf16(x).bits;
}

// Rounding to the activation type: what the reference does between two operations.
template <class T>
[[nodiscard]] HADAL_SIMD_INLINE float rounded(float x) {
  if constexpr (sizeof(T) == 2)
    return round_to_bf16(x);
  else
    return x;
}

// Sums run in 16 lanes that are folded in one fixed tree, whatever the vector width.
inline constexpr int kLanes = 16;
[[nodiscard]] HADAL_SIMD_INLINE float fold_lanes(float* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// sum_i f(i) over [0, n) in the fixed order.
template <class F>
[[nodiscard]] HADAL_SIMD_INLINE float lane_sum(std::int64_t n, F&& f) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += f(i + l);
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += f(i + l);
  return fold_lanes(lanes);
}

// Runs fn<T> for the activation type of a view.
template <class Fn>
void dispatch_activation(DType dtype, Fn&& fn) {
  if (dtype == DType::bf16)
    fn.template operator()<bf16>();
  else
    fn.template operator()<float>();
}

// e^x for x <= 0 and moderate positive x: Cody-Waite reduction and a degree 6 polynomial, error
// below 2 ulp; flushes to 0 below -87. Branch-free, so that loops over it vectorise.
[[nodiscard]] HADAL_SIMD_INLINE float exp_f32(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = clamped * 1.44269504088896341f + 0x1.8p23f;  // round to nearest integer
  const float n = shifted - 0x1.8p23f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = p * (r * r) + r + 1.0f;
  const auto scale = std::bit_cast<std::uint32_t>(shifted) << 23;
  const float y = std::bit_cast<float>(std::bit_cast<std::uint32_t>(e) + scale);
  return x < -87.0f ? 0.0f : y;
}

[[nodiscard]] inline float sigmoid_f32(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

}  // namespace hadal::kernels::cpu
