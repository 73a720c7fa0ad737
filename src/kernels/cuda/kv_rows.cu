// Storing and copying KV rows. One block for a row; when storing, each warp takes a quantisation
// block of it at a time, so the largest magnitude is a reduction within the warp. Every rounding is
// that of the host codec: the stored bytes are equal.
#include "kernels/kv_rows.h"

#include <algorithm>

#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Where row i of a call goes. 64 bits: positions of a ring may be any.
__device__ __forceinline__ std::int64_t slot_of(std::int64_t i, std::int64_t first,
                                                std::int64_t modulus) {
  return modulus > 0 ? (first + i) % modulus : first + i;
}

__device__ __forceinline__ std::byte exponent_byte(int e) {
  return static_cast<std::byte>(min(max(e + 127, 0), 254));
}

// x rounded to bf16, by integer arithmetic: ptxas 13.0 turns a byte store of what
// cvt.rn.bf16.f32 gives into a conversion of the value to an 8-bit integer.
__device__ __forceinline__ std::uint32_t bf16_bits(float x) {
  const std::uint32_t u = __float_as_uint(x);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded;
}

template <class T>
__device__ void store_fp8_mixed(const DeviceRows& rows, const T* x, std::byte* data,
                                std::byte* scales) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int nope = rows.width - rows.rope;
  const int n_blocks = (nope + kKvScaleColumns - 1) / kKvScaleColumns;
  for (int b = warp; b < n_blocks; b += kWarps) {
    const int end = min(nope, (b + 1) * kKvScaleColumns);
    const int c0 = b * kKvScaleColumns + 2 * lane;
    const float v0 = c0 < end ? load(x[c0]) : 0.0f;
    const float v1 = c0 + 1 < end ? load(x[c0 + 1]) : 0.0f;
    const int e = e4m3_scale_exponent(warp_max(fmaxf(fabsf(v0), fabsf(v1))));
    const float inverse = exp2_int(-e);
    if (c0 < end) data[c0] = static_cast<std::byte>(to_e4m3(v0 * inverse));
    if (c0 + 1 < end) data[c0 + 1] = static_cast<std::byte>(to_e4m3(v1 * inverse));
    if (lane == 0) scales[b] = exponent_byte(e);
  }
  for (int b = n_blocks + static_cast<int>(threadIdx.x); b < rows.scale_bytes; b += kThreads) {
    scales[b] = std::byte{0};
  }
  // The warps that have the fewest blocks begin: with 448 + 64 columns the eighth has none.
  for (int i = kThreads - 1 - static_cast<int>(threadIdx.x); i < rows.rope; i += kThreads) {
    const std::uint32_t v = bf16_bits(load(x[nope + i]));
    data[nope + 2 * i] = static_cast<std::byte>(v & 0xffu);
    data[nope + 2 * i + 1] = static_cast<std::byte>(v >> 8);
  }
}

template <class T>
__device__ void store_fp4(const DeviceRows& rows, const T* x, std::byte* data, std::byte* scales) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int b = warp; b * kFp4ScaleColumns < rows.width; b += kWarps) {
    const int c = b * kFp4ScaleColumns + lane;
    const float v = load(x[c]);
    const int e = e2m1_scale_exponent(warp_max(fabsf(v)));
    const float magnitude = round_e2m1_magnitude(fabsf(v) * exp2_int(-e));
    // Times 2^-126 the value's two exponent bits and its mantissa bit are where f32 ends them.
    const std::uint32_t code =
        __float_as_uint(magnitude * 0x1p-126f) >> 22 | (__float_as_uint(v) >> 31) << 3;
    const std::uint32_t high = __shfl_down_sync(0xffffffffu, code, 1);
    if (lane % 2 == 0) data[c / 2] = static_cast<std::byte>(code | high << 4);
    if (lane == 0) scales[b] = exponent_byte(e);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_rows_kernel(DeviceRows rows, const T* x, std::int64_t skip, std::int64_t first,
                      std::int64_t modulus) {
  const std::int64_t i = skip + blockIdx.x, slot = slot_of(i, first, modulus);
  const T* from = x + i * rows.width;
  std::byte* data = rows.row_data(slot);
  std::byte* scales = rows.row_scale(slot);
  switch (rows.kind) {
    case KvRowKind::f32:
      for (int c = static_cast<int>(threadIdx.x); c < rows.width; c += kThreads) {
        reinterpret_cast<float*>(data)[c] = load(from[c]);
      }
      return;
    case KvRowKind::fp8_mixed:
      return store_fp8_mixed(rows, from, data, scales);
    case KvRowKind::fp4:
      return store_fp4(rows, from, data, scales);
  }
}

// Word is the widest type that divides every row.
template <class Word>
__device__ __forceinline__ void copy_words(const std::byte* from, std::byte* to, int n_bytes) {
  for (int i = static_cast<int>(threadIdx.x); i * static_cast<int>(sizeof(Word)) < n_bytes;
       i += kThreads) {
    reinterpret_cast<Word*>(to)[i] = reinterpret_cast<const Word*>(from)[i];
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(DeviceRows from, DeviceRows to, std::int64_t skip, std::int64_t from_first,
                     std::int64_t first, std::int64_t modulus) {
  const std::int64_t i = skip + blockIdx.x, slot = slot_of(i, first, modulus);
  copy_words<Word>(from.row_data(from_first + i), to.row_data(slot), to.data_bytes);
  copy_words<std::uint8_t>(from.row_scale(from_first + i), to.row_scale(slot), to.scale_bytes);
}

bool sixteen_bytes(const PagedRows& rows) {
  return rows.format.data_bytes() % 16 == 0 &&
         std::all_of(rows.pages.begin(), rows.pages.end(), [](const std::byte* page) {
           return reinterpret_cast<std::uintptr_t>(page) % 16 == 0;
         });
}

}  // namespace

void store_kv_rows(Stream& stream, const StoreRowsArgs& a) {
  const std::int64_t n = a.x.dim(0);
  // With a ring shorter than the input only the newest rows survive.
  const std::int64_t skip = a.modulus > 0 ? std::max<std::int64_t>(0, n - a.modulus) : 0;
  if (n == skip) return;
  const DeviceRows rows = device_rows(stream, a.rows);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    launch(stream, "store_kv_rows", store_rows_kernel<T>,
           {dim3(static_cast<unsigned>(n - skip)), dim3(kThreads)}, rows, data<const T>(a.x), skip,
           a.first, a.modulus);
  });
}

void copy_kv_rows(Stream& stream, const CopyRowsArgs& a) {
  const std::int64_t skip = a.modulus > 0 ? std::max<std::int64_t>(0, a.n_rows - a.modulus) : 0;
  if (a.n_rows <= skip) return;
  const DeviceRows from = device_rows(stream, a.from), to = device_rows(stream, a.to);
  const Grid grid{dim3(static_cast<unsigned>(a.n_rows - skip)), dim3(kThreads)};
  const bool wide = sixteen_bytes(a.from) && sixteen_bytes(a.to);
  launch(stream, "copy_kv_rows", wide ? copy_rows_kernel<uint4> : copy_rows_kernel<std::uint8_t>,
         grid, from, to, skip, a.from_first, a.first, a.modulus);
}

}  // namespace hadal::kernels::cuda
