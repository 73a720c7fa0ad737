#if defined(__x86_64__)

#include <immintrin.h>

#include <hwy/base.h>

#include "kernels/cpu/dot_tier.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c")

#include "kernels/cpu/dot_inl.h"

namespace hadal::kernels::cpu {
namespace {

// Sixteen lanes, and as many registers: what limits the tiles.
struct Pair {
  __m256 low, high;  // lanes 0..7, 8..15
};

struct F32Chain {
  using Element = float;
  using Vec = Pair;
  using Acc = Pair;
  static constexpr int kStep = 16;
  static constexpr int kTileX = 2, kTileRows = 3;
  static constexpr int kMaxDirect = 4;
  static constexpr int direct_rows(int m) { return m == 1 ? 4 : m == 2 ? 2 : 1; }

  static Acc zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Acc load_acc(const float* p) { return load(p); }
  static void store_acc(float* p, Acc v) { store(p, v); }
  static Vec load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
  static void store(float* p, Vec v) {
    _mm256_store_ps(p, v.low);
    _mm256_store_ps(p + 8, v.high);
  }
  static Acc mac(Acc acc, Vec x, Vec w) {
    return {_mm256_fmadd_ps(x.low, w.low, acc.low), _mm256_fmadd_ps(x.high, w.high, acc.high)};
  }
  template <int NT>
  static void fold(const Acc (&acc)[NT], float* y, int n_valid) {
    for (int j = 0; j < n_valid; ++j) y[j] = sum(acc[j]);
  }
  static float sum(Acc v) {
    const __m256 v8 = _mm256_add_ps(v.low, v.high);
    const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
  }
};

struct PlainFormat {
  using Chain = F32Chain;
  static constexpr bool kSharedScale = true;
  struct Scale {};
  static Scale scale(const WeightRows&, Index) { return {}; }
  static constexpr int kUnitsPerScale = 0;
};

struct F32Format : PlainFormat {
  static constexpr int kUnit = 16, kUnitBytes = 64;
  static void decode(const std::byte* p, Scale, Pair* out) {
    const auto* f = reinterpret_cast<const float*>(p);
    out[0] = {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
  }
};

inline __m256i load_bytes(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// A pair of bf16 is one dword: the even column below, the odd one above.
struct Bf16Format : PlainFormat {
  static constexpr int kUnit = 32, kUnitBytes = 64;
  static __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static __m256 odd(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
  }
  static void decode(const std::byte* p, Scale, Pair* out) {
    const __m256i first = load_bytes(p), second = load_bytes(p + 32);
    out[0] = {even(first), even(second)};
    out[1] = {odd(first), odd(second)};
  }
};

template <DType kScale>
float scale_at(const WeightRows& w, Index i) {
  if constexpr (kScale == DType::ue8m0) {
    return to_float(ue8m0{static_cast<std::uint8_t>(w.scale[i])});
  } else {
    float s;
    std::memcpy(&s, w.scale + 4 * i, 4);
    return s;
  }
}

// Shifted to where f16 has its exponent, an e4m3 code is a half of 2^-8 times its value, subnormals
// included; only the NaN code needs a hand.
template <DType kScale>
struct Fp8Format {
  using Chain = F32Chain;
  static constexpr int kUnit = 16, kUnitBytes = 16;
  static constexpr bool kSharedScale = true;
  using Scale = __m256;
  static Scale scale(const WeightRows& w, Index i) {
    return _mm256_set1_ps(scale_at<kScale>(w, i) * 256.0f);
  }
  static constexpr int kUnitsPerScale = 0;
  static void decode(const std::byte* p, Scale scale, Pair* out) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i nan_code = _mm256_set1_epi16(0x3f80);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(shifted, nan_code), nan_code);
    const __m256i half = _mm256_or_si256(
        _mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xbf80))), nan);
    out[0] = {_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), scale),
              _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), scale)};
  }
};

// The magnitude is looked up by the three low bits of a nibble, the fourth is the sign.
template <DType kScale>
struct Fp4Format {
  using Chain = F32Chain;
  static constexpr int kUnit = 32, kUnitBytes = 16;
  static constexpr bool kSharedScale = false;
  using Scale = __m256;  // the eight magnitudes
  static Scale scale(const WeightRows& w, Index i) {
    return _mm256_mul_ps(_mm256_loadu_ps(kE2m1Values), _mm256_set1_ps(scale_at<kScale>(w, i)));
  }
  static constexpr int kUnitsPerScale = 1;
  template <int kShift>
  static __m256 values(__m256i bytes, __m256 magnitudes) {
    const __m256i nibbles = kShift == 0 ? bytes : _mm256_srli_epi32(bytes, kShift);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(bytes, 28 - kShift),
                                          _mm256_set1_epi32(static_cast<int>(0x80000000u)));
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, nibbles), _mm256_castsi256_ps(sign));
  }
  static void decode(const std::byte* p, Scale magnitudes, Pair* out) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i first = _mm256_cvtepu8_epi32(bytes);
    const __m256i second = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
    out[0] = {values<0>(first, magnitudes), values<0>(second, magnitudes)};
    out[1] = {values<4>(first, magnitudes), values<4>(second, magnitudes)};
  }
};

}  // namespace

void dot_avx2(const DotTask& t) {
  const bool exponents = t.w.scale_dtype == DType::ue8m0;
  switch (t.w.dtype) {
    case DType::f32:
      return run<F32Format>(t);
    case DType::bf16:
      return run<Bf16Format>(t);
    case DType::f8_e4m3:
      return exponents ? run<Fp8Format<DType::ue8m0>>(t) : run<Fp8Format<DType::f32>>(t);
    default:
      return exponents ? run<Fp4Format<DType::ue8m0>>(t) : run<Fp4Format<DType::f32>>(t);
  }
}

}  // namespace hadal::kernels::cpu

HWY_POP_ATTRIBUTES

#endif  // x86-64
