#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the undefined operand inside its own unmasked intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <hwy/base.h>

#include "kernels/cpu/dot_tables.h"
#include "kernels/cpu/dot_tier.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

#include "kernels/cpu/dot_inl.h"
//
#include "kernels/cpu/dot_avx512_inl.h"

namespace hadal::kernels::cpu {
namespace {

struct F32Chain : Avx512Lanes {
  using Element = float;
  using Vec = __m512;
  static constexpr int kStep = 16;

  static Vec load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Vec v) { _mm512_store_ps(p, v); }
  static Acc mac(Acc acc, Vec x, Vec w) { return _mm512_fmadd_ps(x, w, acc); }
};

struct NoScale {};

struct PlainFormat {
  using Chain = F32Chain;
  static constexpr bool kSharedScale = true;
  using Scale = NoScale;
  static Scale scale(const WeightRows&, Index) { return {}; }
  static constexpr int kUnitsPerScale = 0;
};

struct F32Format : PlainFormat {
  static constexpr int kUnit = 16, kUnitBytes = 64;
  static void decode(const std::byte* p, Scale, __m512* out) { out[0] = _mm512_loadu_ps(p); }
};

// A pair of bf16 is one dword: the even column below, the odd one above.
struct Bf16Format : PlainFormat {
  static constexpr int kUnit = 32, kUnitBytes = 64;
  static void decode(const std::byte* p, Scale, __m512* out) {
    const __m512i pairs = _mm512_loadu_si512(p);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
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
  using Scale = __m512;
  static Scale scale(const WeightRows& w, Index i) {
    return _mm512_set1_ps(scale_at<kScale>(w, i) * 256.0f);
  }
  static constexpr int kUnitsPerScale = 0;
  static void decode(const std::byte* p, Scale scale, __m512* out) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i nan_code = _mm256_set1_epi16(0x3f80);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(shifted, nan_code), nan_code);
    const __m256i half = _mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xbf80)));
    out[0] = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(half, nan)), scale);
  }
};

template <DType kScale>
struct Fp4Format {
  using Chain = F32Chain;
  static constexpr int kUnit = 32, kUnitBytes = 16;
  static constexpr bool kSharedScale = false;
  using Scale = __m512;  // the sixteen values
  static Scale scale(const WeightRows& w, Index i) {
    if constexpr (kScale == DType::ue8m0) {
      return _mm512_load_ps(kFp4F32Tables.row[static_cast<std::uint8_t>(w.scale[i])]);
    } else {
      return _mm512_mul_ps(_mm512_loadu_ps(kE2m1Values), _mm512_set1_ps(scale_at<kScale>(w, i)));
    }
  }
  static constexpr int kUnitsPerScale = 1;
  static void decode(const std::byte* p, Scale values, __m512* out) {
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    out[0] = _mm512_permutexvar_ps(bytes, values);  // looks at four bits of the index
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), values);
  }
};

}  // namespace

void dot_avx512(const DotTask& t) {
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
