// The instructions that the compiler may assume: NEON on ARM, and whatever an x86 build is for.
// Without a fused multiply-add there, std::fma keeps the bits and costs the speed; such a CPU is
// older than any that holds this model.
#include <cmath>

#include "kernels/cpu/dot_tier.h"

// Sixteen lanes are four vectors of a fixed size, which scalable ones are not.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include <hwy/highway.h>

#include "kernels/cpu/dot_inl.h"

namespace hadal::kernels::cpu {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

struct F32Chain {
  using Element = float;
  static constexpr int kStep = 16;
  static constexpr int kTileX = 2, kTileRows = 3;
  static constexpr int kMaxDirect = 1;
  static constexpr int direct_rows(int) { return 4; }

#if HWY_NATIVE_FMA
  using Lanes4 = hn::FixedTag<float, 4>;
  struct Vec {
    hn::VFromD<Lanes4> v[4];
  };
  static Vec zero() {
    const auto z = hn::Zero(Lanes4());
    return {{z, z, z, z}};
  }
  static Vec load(const float* p) {
    const Lanes4 d;
    return {{hn::LoadU(d, p), hn::LoadU(d, p + 4), hn::LoadU(d, p + 8), hn::LoadU(d, p + 12)}};
  }
  static void store(float* p, const Vec& x) {
    for (int i = 0; i < 4; ++i) hn::StoreU(x.v[i], Lanes4(), p + 4 * i);
  }
  static Vec mac(const Vec& acc, const Vec& x, const Vec& w) {
    return {{hn::MulAdd(x.v[0], w.v[0], acc.v[0]), hn::MulAdd(x.v[1], w.v[1], acc.v[1]),
             hn::MulAdd(x.v[2], w.v[2], acc.v[2]), hn::MulAdd(x.v[3], w.v[3], acc.v[3])}};
  }
#else
  struct Vec {
    float v[16];
  };
  static Vec zero() { return {}; }
  static Vec load(const float* p) {
    Vec x;
    std::memcpy(x.v, p, sizeof x.v);
    return x;
  }
  static void store(float* p, const Vec& x) { std::memcpy(p, x.v, sizeof x.v); }
  // Sixteen calls; inlined everywhere they would be half a megabyte.
  [[gnu::noinline]] static Vec mac(const Vec& acc, const Vec& x, const Vec& w) {
    Vec sum;
    for (int l = 0; l < 16; ++l) sum.v[l] = std::fma(x.v[l], w.v[l], acc.v[l]);
    return sum;
  }
#endif
  using Acc = Vec;
  static Acc load_acc(const float* p) { return load(p); }
  static void store_acc(float* p, const Acc& v) { store(p, v); }
  template <int NT>
  static void fold(const Acc (&acc)[NT], float* y, int n_valid) {
    for (int j = 0; j < n_valid; ++j) y[j] = sum(acc[j]);
  }
  static float sum(const Acc& v) {
    float lanes[16];
    store(lanes, v);
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    }
    return lanes[0];
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
  static void decode(const std::byte* p, Scale, F32Chain::Vec* out) {
    float v[16];
    std::memcpy(v, p, sizeof v);
    out[0] = F32Chain::load(v);
  }
};

struct Bf16Format : PlainFormat {
  static constexpr int kUnit = 32, kUnitBytes = 64;
  static void decode(const std::byte* p, Scale, F32Chain::Vec* out) {
    bf16 w[32];
    std::memcpy(w, p, sizeof w);
    float even[16], odd[16];
    for (int l = 0; l < 16; ++l) even[l] = to_float(w[2 * l]), odd[l] = to_float(w[2 * l + 1]);
    out[0] = F32Chain::load(even);
    out[1] = F32Chain::load(odd);
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

template <DType kScale>
struct Fp8Format {
  using Chain = F32Chain;
  static constexpr int kUnit = 16, kUnitBytes = 16;
  static constexpr bool kSharedScale = true;
  using Scale = float;
  static Scale scale(const WeightRows& w, Index i) { return scale_at<kScale>(w, i); }
  static constexpr int kUnitsPerScale = 0;
  static void decode(const std::byte* p, Scale scale, F32Chain::Vec* out) {
    float v[16];
    for (int l = 0; l < 16; ++l) v[l] = to_float(f8_e4m3{static_cast<std::uint8_t>(p[l])}) * scale;
    out[0] = F32Chain::load(v);
  }
};

template <DType kScale>
struct Fp4Format {
  using Chain = F32Chain;
  static constexpr int kUnit = 32, kUnitBytes = 16;
  static constexpr bool kSharedScale = false;
  using Scale = float;
  static Scale scale(const WeightRows& w, Index i) { return scale_at<kScale>(w, i); }
  static constexpr int kUnitsPerScale = 1;
  static void decode(const std::byte* p, Scale scale, F32Chain::Vec* out) {
    float low[16], high[16];
    for (int l = 0; l < 16; ++l) {
      const auto b = static_cast<std::uint8_t>(p[l]);
      low[l] = kE2m1Values[b & 15] * scale;
      high[l] = kE2m1Values[b >> 4] * scale;
    }
    out[0] = F32Chain::load(low);
    out[1] = F32Chain::load(high);
  }
};

}  // namespace

void dot_portable(const DotTask& t) {
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
