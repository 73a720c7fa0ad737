// Storing and copying KV rows. One block for a row; when storing, each warp takes a quantisation
// block of it at a time, so the largest magnitude is a reduction within the warp. Every rounding is
// that of the host codec: the stored bytes are equal.
#include "kernels/kv_rows.h"

#include <algorithm>
#include <vector>

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

// A range of a call: rows [0, n) of it are blocks [block, block + n) of the grid.
struct DeviceRange {
  DeviceRows rows;
  std::int64_t begin = 0;  // row of x, or of the place that is copied from
  std::int64_t first = 0, modulus = 0;
  std::int32_t block = 0;
};

// The range that this block works in: the last one that begins at or before it.
__device__ __forceinline__ const DeviceRange& range_of_block(const DeviceRange* ranges,
                                                             int n_ranges) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = n_ranges;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (ranges[middle].block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return ranges[low];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_rows_kernel(const DeviceRange* ranges, int n_ranges, const T* x) {
  const DeviceRange& r = range_of_block(ranges, n_ranges);
  const std::int64_t i = static_cast<int>(blockIdx.x) - r.block;
  const std::int64_t slot = slot_of(i, r.first, r.modulus);
  const DeviceRows& rows = r.rows;
  const T* from = x + (r.begin + i) * rows.width;
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
    copy_rows_kernel(DeviceRows from, const DeviceRange* ranges, int n_ranges) {
  const DeviceRange& r = range_of_block(ranges, n_ranges);
  const std::int64_t i = static_cast<int>(blockIdx.x) - r.block;
  const std::int64_t slot = slot_of(i, r.first, r.modulus);
  copy_words<Word>(from.row_data(r.begin + i), r.rows.row_data(slot), from.data_bytes);
  copy_words<std::uint8_t>(from.row_scale(r.begin + i), r.rows.row_scale(slot), from.scale_bytes);
}

bool sixteen_bytes(const PagedRows& rows) {
  return rows.format.data_bytes() % 16 == 0 &&
         std::all_of(rows.pages.begin(), rows.pages.end(), [](const std::byte* page) {
           return reinterpret_cast<std::uintptr_t>(page) % 16 == 0;
         });
}

const PagedRows& place_of(const StoreRange& r) {
  return r.rows;
}
const PagedRows& place_of(const CopyRange& r) {
  return r.to;
}

// The ranges of a call in device memory, with the pages that they touch and no others.
struct Ranges {
  const DeviceRange* ranges = nullptr;
  int n_ranges = 0;
  std::int64_t n_rows = 0;
};

template <class Range>
Ranges stage(Stream& stream, std::span<const Range> ranges) {
  std::vector<DeviceRange> staged;
  std::vector<std::byte*> pages;
  std::vector<std::size_t> first_page;
  Ranges out;
  for (const Range& r : ranges) {
    const std::int64_t skip = skipped_rows(r), n = r.end - r.begin - skip;
    if (n <= 0) continue;
    const PagedRows& rows = place_of(r);
    std::int64_t first = r.first + skip, page0 = 0;
    std::int64_t page1 = static_cast<std::int64_t>(rows.pages.size());
    if (r.modulus == 0) {
      page0 = first / rows.rows_per_page;
      page1 = (first + n - 1) / rows.rows_per_page + 1;
      first -= page0 * rows.rows_per_page;
    }
    first_page.push_back(pages.size());
    for (std::int64_t p = page0; p < page1; ++p) {
      pages.push_back(rows.pages[static_cast<std::size_t>(p)]);
    }
    DeviceRange d;
    d.rows = device_rows(rows, nullptr);  // the table follows once it is staged
    d.begin = r.begin + skip;
    d.first = first, d.modulus = r.modulus;
    d.block = static_cast<std::int32_t>(out.n_rows);
    out.n_rows += n;
    staged.push_back(d);
  }
  if (staged.empty()) return out;
  const auto* table = reinterpret_cast<const std::byte* const*>(
      stream.cuda().stage(pages.data(), pages.size() * sizeof(std::byte*)));
  for (std::size_t i = 0; i < staged.size(); ++i) staged[i].rows.pages = table + first_page[i];
  out.ranges = stream.cuda().stage(std::span<const DeviceRange>(staged));
  out.n_ranges = static_cast<int>(staged.size());
  return out;
}

}  // namespace

void store_kv_rows(Stream& stream, const StoreRowsArgs& a) {
  const Ranges r = stage(stream, a.ranges);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    launch(stream, "store_kv_rows", store_rows_kernel<T>,
           {dim3(static_cast<unsigned>(r.n_rows)), dim3(kThreads)}, r.ranges, r.n_ranges,
           data<const T>(a.x));
  });
}

void copy_kv_rows(Stream& stream, const CopyRowsArgs& a) {
  const Ranges r = stage(stream, a.ranges);
  if (r.n_rows == 0) return;
  const DeviceRows from = device_rows(stream, a.from);
  const Grid grid{dim3(static_cast<unsigned>(r.n_rows)), dim3(kThreads)};
  const bool wide = sixteen_bytes(a.from) &&
                    std::all_of(a.ranges.begin(), a.ranges.end(),
                                [](const CopyRange& range) { return sixteen_bytes(range.to); });
  if (wide) {
    launch(stream, "copy_kv_rows", copy_rows_kernel<uint4>, grid, from, r.ranges, r.n_ranges);
  } else {
    launch(stream, "copy_kv_rows", copy_rows_kernel<std::uint8_t>, grid, from, r.ranges,
           r.n_ranges);
  }
}

}  // namespace hadal::kernels::cuda
