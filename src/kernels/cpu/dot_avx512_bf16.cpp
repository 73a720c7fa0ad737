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

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")

#include "kernels/cpu/dot_inl.h"
//
#include "kernels/cpu/dot_avx512_inl.h"

namespace hadal::kernels::cpu {
namespace {

struct Bf16Chain : Avx512Lanes {
  using Element = std::uint16_t;
  using Vec = __m512i;  // 32 bf16
  static constexpr int kStep = 32;

  static Vec load(const Element* p) { return _mm512_load_si512(p); }
  static void store(Element* p, Vec v) { _mm512_store_si512(p, v); }
  static Acc mac(Acc acc, Vec x, Vec w) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};

struct Bf16Format {
  using Chain = Bf16Chain;
  static constexpr int kUnit = 32, kUnitBytes = 64;
  static constexpr bool kSharedScale = true;
  struct Scale {};
  static Scale scale(const WeightRows&, Index) { return {}; }
  static constexpr int kUnitsPerScale = 0;
  static void decode(const std::byte* p, Scale, __m512i* out) { out[0] = _mm512_loadu_si512(p); }
};

// A look-up of the low and of the high byte of each value, then both unpacked into words: which
// is ColumnOrder::unpack64.
struct Fp8Format {
  using Chain = Bf16Chain;
  static constexpr int kUnit = 64, kUnitBytes = 64;
  static constexpr bool kSharedScale = true;
  struct Scale {
    __m512i low0, low1, high0, high1;  // bytes for codes 0..63 and 64..127
  };
  static Scale scale(const WeightRows& w, Index i) {
    const auto* t = kFp8Bf16Tables.row[static_cast<std::uint8_t>(w.scale[i])];
    return {_mm512_load_si512(t), _mm512_load_si512(t + 64), _mm512_load_si512(t + 128),
            _mm512_load_si512(t + 192)};
  }
  static constexpr int kUnitsPerScale = 0;
  static void decode(const std::byte* p, const Scale& s, __m512i* out) {
    const __m512i codes = _mm512_loadu_si512(p);
    const __m512i low = _mm512_permutex2var_epi8(s.low0, codes, s.low1);
    __m512i high = _mm512_permutex2var_epi8(s.high0, codes, s.high1);
    constexpr int kFirstOrBoth = 0xf8;  // a | (b & c)
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), kFirstOrBoth);
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
  }
};

// Sixteen bytes, four times over, are sixteen dwords of eight nibbles. Each copy is shifted by a
// nibble more, so that its words end in nibbles i and i + 4 of a dword: ColumnOrder::nibbles32. The
// look-up minds five bits of a word, so the table has its sixteen values twice.
struct Fp4Format {
  using Chain = Bf16Chain;
  static constexpr int kUnit = 32, kUnitBytes = 16;
  static constexpr bool kSharedScale = false;
  using Scale = const std::uint16_t*;
  static Scale scale(const WeightRows& w, Index i) {
    return kFp4Bf16Tables.row[static_cast<std::uint8_t>(w.scale[i])];
  }
  static constexpr int kUnitsPerScale = 1;
  static void decode(const std::byte* p, Scale values, __m512i* out) {
    const __m512i bytes =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i shifts = _mm512_set_epi32(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i words = _mm512_srlv_epi32(bytes, shifts);
    out[0] = _mm512_permutexvar_epi16(words, _mm512_load_si512(values));
  }
};

}  // namespace

void dot_avx512_bf16(const DotTask& t) {
  switch (t.w.dtype) {
    case DType::bf16:
      return run<Bf16Format>(t);
    case DType::f8_e4m3:
      return run<Fp8Format>(t);
    default:
      return run<Fp4Format>(t);
  }
}

}  // namespace hadal::kernels::cpu

HWY_POP_ATTRIBUTES

#endif  // x86-64
