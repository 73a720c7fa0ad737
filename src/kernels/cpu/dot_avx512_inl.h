// The accumulator that both AVX-512 chains share. Included after dot_inl.h, inside the target
// attributes of the file that needs it.
#ifndef HADAL_KERNELS_CPU_DOT_AVX512_INL_H_
#define HADAL_KERNELS_CPU_DOT_AVX512_INL_H_

namespace hadal::kernels::cpu {
namespace {

struct Avx512Lanes {
  using Acc = __m512;
  static constexpr int kTileX = 4, kTileRows = 6;  // 24 accumulators of 32 registers
  static constexpr int kMaxDirect = 4;
  static constexpr int direct_rows(int m) { return m <= 2 ? 6 : 4; }

  static Acc zero() { return _mm512_setzero_ps(); }
  static Acc load_acc(const float* p) { return _mm512_load_ps(p); }
  static void store_acc(float* p, Acc v) { _mm512_store_ps(p, v); }

  // Lanes l and l + 8 of two accumulators: eight lanes of a, then eight of b.
  static __m512 fold8(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  // Lanes l and l + 4 of four: four lanes of each.
  static __m512 fold4(__m512 ab, __m512 cd) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  }
  // Lanes l and l + 2 of eight: in every 128 bits two lanes of one of the first four, then two of
  // one of the others.
  static __m512 fold2(__m512 first, __m512 second) {
    const __m512d f = _mm512_castps_pd(first), s = _mm512_castps_pd(second);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(f, s)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(f, s)));
  }

  // All sums of a row of accumulators together: a third of the shuffles that one by one would take,
  // which counts where columns are few.
  template <int NT>
  static void fold(const Acc (&acc)[NT], float* y, int n_valid) {
    static_assert(NT <= 8);
    const auto at = [&](int j) { return acc[j < NT ? j : NT - 1]; };
    const __m512 low = fold4(fold8(at(0), at(1)), fold8(at(2), at(3)));
    const __m512 high = NT > 4 ? fold4(fold8(at(4), at(5)), fold8(at(6), at(7))) : low;
    const __m512 pairs = fold2(low, high);
    const __m512 sums = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
    const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 10, 6, 2, 12, 8, 4, 0);
    const auto valid = static_cast<__mmask16>((1u << n_valid) - 1);
    _mm512_mask_storeu_ps(y, valid, _mm512_permutexvar_ps(order, sums));
  }
};

}  // namespace
}  // namespace hadal::kernels::cpu

#endif  // HADAL_KERNELS_CPU_DOT_AVX512_INL_H_
