// What the narrow weight codes are worth under every ue8m0 scale, so that decoding with a scale is
// one table look-up. Only the few scales that a matrix uses come near a cache.
#pragma once

#include <cstdint>

namespace hadal::kernels::cpu {

// [scale byte][e2m1 code] element * scale in f32, as to_float(ue8m0) * kE2m1Values rounds it.
struct Fp4F32Tables {
  alignas(64) float row[256][16];
};

// [scale byte][e2m1 code, twice over] the same in bf16, which is exact; below 2^-126 it is zero.
struct Fp4Bf16Tables {
  alignas(64) std::uint16_t row[256][32];
};

// [scale byte] of |e4m3| * scale in bf16: low bytes for codes 0..127, then high bytes. Zero below
// 2^-126; the sign is the caller's to add.
struct Fp8Bf16Tables {
  alignas(64) std::uint8_t row[256][256];
};

extern const Fp4F32Tables kFp4F32Tables;
extern const Fp4Bf16Tables kFp4Bf16Tables;
extern const Fp8Bf16Tables kFp8Bf16Tables;

}  // namespace hadal::kernels::cpu
