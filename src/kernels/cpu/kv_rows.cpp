#include "kernels/cpu/kv_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/quant.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

template <class T>
float block_amax(const T* x, std::int64_t n) {
  float amax = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) amax = std::max(amax, std::fabs(load(x[i])));
  return amax;
}

ue8m0 exponent_byte(int e) {
  return {static_cast<std::uint8_t>(std::clamp(e + 127, 0, 254))};
}

template <class T>
void encode_fp8_mixed(const KvRowFormat& f, const T* x, std::byte* data, std::byte* scales) {
  const std::int64_t nope = f.width - f.rope;
  std::memset(scales, 0, static_cast<std::size_t>(f.scale_bytes()));
  auto* codes = reinterpret_cast<f8_e4m3*>(data);
  for (std::int64_t b = 0; b * kKvQuantBlock < nope; ++b) {
    const std::int64_t c0 = b * kKvQuantBlock, c1 = std::min(nope, c0 + kKvQuantBlock);
    const int e = e4m3_scale_exponent(block_amax(x + c0, c1 - c0));
    const float inverse = exp2_int(-e);  // exact: e is between -22 and 120
    for (std::int64_t c = c0; c < c1; ++c) codes[c] = to_e4m3(load(x[c]) * inverse);
    scales[b] = std::byte{exponent_byte(e).bits};
  }
  for (std::int64_t i = 0; i < f.rope; ++i) {
    const bf16 v = to_bf16(load(x[nope + i]));
    std::memcpy(data + nope + 2 * i, &v, 2);
  }
}

template <class T>
void encode_fp4(const KvRowFormat& f, const T* x, std::byte* data, std::byte* scales) {
  std::memset(data, 0, static_cast<std::size_t>(f.data_bytes()));
  for (std::int64_t b = 0; b * kFp4Block.cols < f.width; ++b) {
    const T* block = x + b * kFp4Block.cols;
    const ue8m0 scale = exponent_byte(e2m1_scale_exponent(block_amax(block, kFp4Block.cols)));
    scales[b] = std::byte{scale.bits};
    const float divisor = to_float(scale);
    for (std::int64_t i = 0; i < kFp4Block.cols; ++i) {
      const std::int64_t c = b * kFp4Block.cols + i;
      data[c / 2] |= static_cast<std::byte>(to_e2m1(load(block[i]) / divisor) << (4 * (c & 1)));
    }
  }
}

// Without subnormal operands, which some CPUs multiply very slowly: codes below 8 are their number
// times 2^-9, the others go to their place in the f32 exponent.
template <class T>
HADAL_SIMD_INLINE void decode_e4m3_as(const std::uint8_t* codes, float scale, std::int64_t n,
                                      T* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t code = codes[i], magnitude = code & 0x7fu;
    const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-9f;
    const float large = std::bit_cast<float>((magnitude << 20) + (120u << 23));
    const float value = (magnitude < 8 ? small : large) * scale;
    put(out[i], std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | ((code & 0x80u) << 24)));
  }
}
HADAL_SIMD_CLONES void decode_e4m3(const std::uint8_t* codes, float scale, std::int64_t n,
                                   float* out) {
  decode_e4m3_as(codes, scale, n, out);
}
HADAL_SIMD_CLONES void decode_e4m3(const std::uint8_t* codes, float scale, std::int64_t n,
                                   bf16* out) {
  decode_e4m3_as(codes, scale, n, out);
}

void decode_bf16(const std::byte* from, std::int64_t n, bf16* out) {
  std::memcpy(out, from, static_cast<std::size_t>(n) * 2);
}
void decode_bf16(const std::byte* from, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    bf16 v;
    std::memcpy(&v, from + 2 * i, 2);
    out[i] = to_float(v);
  }
}

template <class T>
void encode_row(const KvRowFormat& f, const T* x, std::byte* data, std::byte* scales) {
  switch (f.kind) {
    case KvRowKind::f32: {
      auto* out = reinterpret_cast<float*>(data);
      for (std::int64_t c = 0; c < f.width; ++c) out[c] = load(x[c]);
      return;
    }
    case KvRowKind::fp8_mixed:
      return encode_fp8_mixed(f, x, data, scales);
    case KvRowKind::fp4:
      return encode_fp4(f, x, data, scales);
  }
}

}  // namespace

template <class T>
void decode_row(const PagedRows& rows, std::int64_t row, T* out) {
  const KvRowFormat& f = rows.format;
  const std::byte* data = rows.data(row);
  const std::byte* scales = rows.scale(row);
  switch (f.kind) {
    case KvRowKind::f32: {
      const auto* in = reinterpret_cast<const float*>(data);
      for (std::int64_t c = 0; c < f.width; ++c) put(out[c], in[c]);
      return;
    }
    case KvRowKind::fp8_mixed: {
      const std::int64_t nope = f.width - f.rope;
      const auto* codes = reinterpret_cast<const std::uint8_t*>(data);
      for (std::int64_t b = 0; b * kKvQuantBlock < nope; ++b) {
        const float scale = to_float(ue8m0{std::to_integer<std::uint8_t>(scales[b])});
        const std::int64_t c0 = b * kKvQuantBlock, c1 = std::min(nope, c0 + kKvQuantBlock);
        decode_e4m3(codes + c0, scale, c1 - c0, out + c0);
      }
      decode_bf16(data + nope, f.rope, out + nope);
      return;
    }
    case KvRowKind::fp4:
      for (std::int64_t c = 0; c < f.width; ++c) {
        const auto byte = std::to_integer<unsigned>(data[c / 2]);
        const float v = e2m1_to_float(static_cast<std::uint8_t>(byte >> (4 * (c & 1))));
        const ue8m0 scale{std::to_integer<std::uint8_t>(scales[c / kFp4Block.cols])};
        put(out[c], v * to_float(scale));
      }
      return;
  }
}

template <class T>
void decode_rows(const PagedRows& rows, std::int64_t first, std::int64_t n, T* out) {
  for (std::int64_t i = 0; i < n; ++i) decode_row(rows, first + i, out + i * rows.format.width);
}

template void decode_row<float>(const PagedRows&, std::int64_t, float*);
template void decode_row<bf16>(const PagedRows&, std::int64_t, bf16*);
template void decode_rows<float>(const PagedRows&, std::int64_t, std::int64_t, float*);
template void decode_rows<bf16>(const PagedRows&, std::int64_t, std::int64_t, bf16*);

void store_kv_rows(Stream& stream, const StoreRowsArgs& a) {
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    for (const StoreRange& r : a.ranges) {
      const KvRowFormat& f = r.rows.format;
      const std::int64_t skip = skipped_rows(r);
      stream.pool().parallel_for(
          r.end - r.begin - skip, 16, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = skip + begin; i < skip + end; ++i) {
              const std::int64_t slot = r.modulus > 0 ? (r.first + i) % r.modulus : r.first + i;
              encode_row(f, a.x.data<const T>() + (r.begin + i) * f.width, r.rows.data(slot),
                         r.rows.scale(slot));
            }
          });
    }
  });
}

void copy_kv_rows(Stream&, const CopyRowsArgs& a) {
  const KvRowFormat& f = a.from.format;
  for (const CopyRange& r : a.ranges) {
    for (std::int64_t i = skipped_rows(r); i < r.end - r.begin; ++i) {
      const std::int64_t slot = r.modulus > 0 ? (r.first + i) % r.modulus : r.first + i;
      std::memcpy(r.to.data(slot), a.from.data(r.begin + i),
                  static_cast<std::size_t>(f.data_bytes()));
      std::memcpy(r.to.scale(slot), a.from.scale(r.begin + i),
                  static_cast<std::size_t>(f.scale_bytes()));
    }
  }
}

}  // namespace hadal::kernels::cpu
