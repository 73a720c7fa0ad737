// Three launches for all weights of a model. Plain roundings: a block a chunk of 16,384 elements.
// With scales: a block a 128x128 block of one weight, which is what one FP8 scale covers, and how
// far FP4 tiles know of each other. A warp has a row of it at a time, so that reads are whole
// lines; FP4 keeps its codes in registers until the block's largest scale is known. The functions
// are core/quant.cpp's, operation by operation: the same bytes.
#include "kernels/store_weights.h"

#include "core/quant.h"
#include "kernels/cuda/device/chunks.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr std::int64_t kChunk = 16384;
constexpr int kBlock = 128;  // both ways
constexpr int kTile = 32;    // columns of an FP4 scale
static_assert(kFp8Block == QuantBlock{kBlock, kBlock} && kFp4Block == QuantBlock{1, kTile});

// What the host learns of a weight; all zero to begin with.
struct Found {
  unsigned long long n_lifted;
  unsigned long long non_finite;  // kNoPlace - place, so that the first is the largest
};
constexpr unsigned long long kNoPlace = 1ull << 62;

// core/dtype.h: to_bf16, NaN and all.
__device__ __forceinline__ std::uint16_t bf16_bits(float x) {
  const std::uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
// core/quant.cpp: encode_e4m3, encode_e2m1; x is finite.
__device__ __forceinline__ std::uint8_t encode_e4m3(float x) {
  const std::uint32_t u = __float_as_uint(x), sign = (u >> 24) & 0x80u;
  const std::uint32_t m = min(u & 0x7fffffffu, 0x43e00000u);  // 448
  const std::uint32_t subnormal =
      __float_as_uint(__fadd_rn(__uint_as_float(m), 0x1p14f)) - 0x46800000u;
  const std::uint32_t normal = ((m + 0x7ffffu + ((m >> 20) & 1u)) >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(sign | (m < 0x3c800000u ? subnormal : normal));
}
__device__ __forceinline__ std::uint32_t encode_e2m1(float x) {
  const float m = fabsf(x);
  const std::uint32_t code = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) +
                             (m >= 3.5f) + (m > 5.0f);
  return code | ((__float_as_uint(x) >> 28) & 8u);
}
__device__ __forceinline__ int scale_byte(int exponent) {
  return min(max(exponent + 127, 0), 254);
}
__device__ __forceinline__ float reciprocal(int byte) {
  return ue8m0_to_float(static_cast<std::uint8_t>(254 - byte));
}

struct RoundItem {
  const float* from;
  std::byte* to;
  std::int64_t n, first_chunk;
  bool to_f32, in_groups;
};

template <bool kVector>
__device__ __forceinline__ void round_chunk(const RoundItem& item, std::int64_t begin,
                                            std::int64_t n) {
  constexpr int kN = 4;
  for (std::int64_t at = std::int64_t{threadIdx.x} * kN; at < n; at += kThreads * kN) {
    float v[kN];
    load_group<kVector>(v, item.from + begin, at, n);
    Pack<std::uint16_t, kN> bits;
#pragma unroll
    for (int i = 0; i < kN; ++i) bits.v[i] = bf16_bits(v[i]);
    if (item.to_f32) {
#pragma unroll
      for (int i = 0; i < kN; ++i) v[i] = __uint_as_float(std::uint32_t{bits.v[i]} << 16);
      put_group<kVector>(reinterpret_cast<float*>(item.to) + begin, at, n, v);
      continue;
    }
    auto* const to = reinterpret_cast<std::uint16_t*>(item.to) + begin + at;
    if constexpr (kVector) {
      *reinterpret_cast<Pack<std::uint16_t, kN>*>(to) = bits;
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (at + i < n) to[i] = bits.v[i];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) round_kernel(const RoundItem* items, int n_items) {
  const RoundItem item = items[item_of(items, n_items, blockIdx.x)];
  const std::int64_t begin = (std::int64_t{blockIdx.x} - item.first_chunk) * kChunk;
  const std::int64_t n = min(kChunk, item.n - begin);
  if (item.in_groups)
    round_chunk<true>(item, begin, n);
  else
    round_chunk<false>(item, begin, n);
}

struct ScaledItem {
  const float* from;
  std::uint8_t *data, *scale;
  std::int64_t rows, cols, first_chunk;  // a chunk is a 128x128 block
  std::int32_t weight;                   // its place among all
  bool in_fours;
};

// The block's corner and its size within the weight.
struct Corner {
  std::int64_t row0, col0;
  int rows, cols;
  __device__ Corner(const ScaledItem& item, std::int64_t block) {
    const std::int64_t across = (item.cols + kBlock - 1) / kBlock;
    row0 = block / across * kBlock, col0 = block % across * kBlock;
    rows = static_cast<int>(min(std::int64_t{kBlock}, item.rows - row0));
    cols = static_cast<int>(min(std::int64_t{kBlock}, item.cols - col0));
  }
};

__device__ __forceinline__ void report_place(Found* found, std::int64_t place) {
  atomicMax(&found->non_finite, kNoPlace - static_cast<unsigned long long>(place));
}

__global__ void __launch_bounds__(kThreads)
    store_fp8_kernel(Found* found, const ScaledItem* items, int n_items) {
  __shared__ float shared[kWarps];
  const ScaledItem item = items[item_of(items, n_items, blockIdx.x)];
  const std::int64_t block = std::int64_t{blockIdx.x} - item.first_chunk;
  const Corner at(item, block);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float* const from = item.from + at.row0 * item.cols + at.col0;
  std::uint8_t* const to = item.data + at.row0 * item.cols + at.col0;
  float top = 0.0f;
  bool finite = true;
  for (int r = warp; r < at.rows; r += kWarps) {
    for (int c = lane; c < at.cols; c += 32) {
      const float m = fabsf(from[r * item.cols + c]);
      if (!(m < INFINITY) && finite) {
        report_place(found + item.weight, (at.row0 + r) * item.cols + at.col0 + c);
        finite = false;  // those after it come later
      }
      top = fmaxf(top, m);
    }
  }
  top = block_max<kThreads>(top, shared);
  const int scale = scale_byte(e4m3_scale_exponent(top));
  if (threadIdx.x == 0) item.scale[block] = static_cast<std::uint8_t>(scale);
  const float factor = reciprocal(scale);
  for (int r = warp; r < at.rows; r += kWarps) {
    for (int c = lane; c < at.cols; c += 32) {
      to[r * item.cols + c] = encode_e4m3(__fmul_rn(from[r * item.cols + c], factor));
    }
  }
}

__device__ __forceinline__ float4 load_elements(const float* x, bool in_fours) {
  return in_fours ? *reinterpret_cast<const float4*>(x) : make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ std::uint32_t encode_four(float4 v, float factor) {
  return encode_e2m1(__fmul_rn(v.x, factor)) | encode_e2m1(__fmul_rn(v.y, factor)) << 4 |
         encode_e2m1(__fmul_rn(v.z, factor)) << 8 | encode_e2m1(__fmul_rn(v.w, factor)) << 12;
}

// A lane has four elements of a row, eight lanes a tile.
__global__ void __launch_bounds__(kThreads)
    store_fp4_kernel(Found* found, const ScaledItem* items, int n_items) {
  __shared__ float shared[kWarps];
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kRows = kBlock / kWarps;  // of a warp
  const ScaledItem item = items[item_of(items, n_items, blockIdx.x)];
  const Corner at(item, std::int64_t{blockIdx.x} - item.first_chunk);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const bool inside = 4 * lane < at.cols;  // all eight lanes of a tile or none
  const std::int64_t first = (at.row0 + warp) * item.cols + at.col0 + 4 * lane;
  std::uint32_t kept[kRows];  // codes; from bit 16 the scale; from bit 24 whether all are zero
  int largest = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    kept[i] = 0;
    if (warp + kWarps * i >= at.rows) continue;  // the whole warp
    const std::int64_t place = first + std::int64_t{kWarps} * i * item.cols;
    const float4 v =
        inside ? load_elements(item.from + place, item.in_fours) : make_float4(0, 0, 0, 0);
    const float m[4] = {fabsf(v.x), fabsf(v.y), fabsf(v.z), fabsf(v.w)};
#pragma unroll
    for (int k = 3; k >= 0; --k) {
      if (!(m[k] < INFINITY)) report_place(found + item.weight, place + k);
    }
    float top = fmaxf(fmaxf(m[0], m[1]), fmaxf(m[2], m[3]));
#pragma unroll
    for (int other = 1; other < 8; other *= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, other));
    const int scale = scale_byte(e2m1_scale_exponent(top));
    const std::uint32_t codes = encode_four(v, reciprocal(scale));
    std::uint32_t magnitudes = codes & 0x7777u;
#pragma unroll
    for (int other = 1; other < 8; other *= 2) {
      magnitudes |= __shfl_xor_sync(kAll, magnitudes, other);
    }
    kept[i] = codes | static_cast<std::uint32_t>(scale) << 16 | (magnitudes == 0 ? 1u << 24 : 0u);
    if (magnitudes != 0) largest = max(largest, scale);
  }
  largest = static_cast<int>(block_max<kThreads>(static_cast<float>(largest), shared));
  int n_lifted = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (warp + kWarps * i >= at.rows || !inside) continue;
    const std::int64_t place = first + std::int64_t{kWarps} * i * item.cols;
    std::uint32_t codes = kept[i] & 0xffffu;
    int scale = static_cast<int>(kept[i] >> 16 & 0xffu);
    if (kept[i] >> 24 != 0) {
      scale = largest;
    } else if (scale + kFp4ScaleSpan < largest) {
      scale = largest - kFp4ScaleSpan;
      codes = encode_four(load_elements(item.from + place, item.in_fours), reciprocal(scale));
      n_lifted += lane % 8 == 0 ? 1 : 0;
    }
    *reinterpret_cast<std::uint16_t*>(item.data + place / 2) = static_cast<std::uint16_t>(codes);
    if (lane % 8 == 0) item.scale[place / kTile] = static_cast<std::uint8_t>(scale);
  }
  if (n_lifted > 0) {
    atomicAdd(&found[item.weight].n_lifted, static_cast<unsigned long long>(n_lifted));
  }
}

// Items of one launch, and how many chunks they have.
template <class Item>
struct Items {
  std::vector<Item> items;
  std::int64_t n_chunks = 0;

  void add(Item item, std::int64_t chunks) {
    item.first_chunk = n_chunks;
    n_chunks += chunks;
    if (chunks > 0) items.push_back(item);
  }
  [[nodiscard]] Grid grid() const { return {dim3(blocks_for(n_chunks, 1)), dim3(kThreads)}; }
};

ScaledItem scaled_item(const StoredWeight& w, std::size_t weight) {
  HADAL_CHECK(w.master.shape().rank() == 2 && bits(w.scale.dtype()) == 8);
  return {.from = data<const float>(w.master),
          .data = reinterpret_cast<std::uint8_t*>(w.data.bytes()),
          .scale = reinterpret_cast<std::uint8_t*>(w.scale.bytes()),
          .rows = w.master.dim(0),
          .cols = w.master.dim(1),
          .first_chunk = 0,
          .weight = static_cast<std::int32_t>(weight),
          .in_fours = in_groups(w.master.dim(1), 4, w.master)};
}

void launch_scaled(Stream& stream, void (*kernel)(Found*, const ScaledItem*, int), Found* found,
                   const Items<ScaledItem>& items) {
  if (items.items.empty()) return;
  launch(stream, "store_weights", kernel, items.grid(), found,
         stream.cuda().stage(std::span<const ScaledItem>(items.items)),
         static_cast<int>(items.items.size()));
}

}  // namespace

void store_weights(Stream& stream, const StoreWeightsArgs& a) {
  HADAL_CHECK(a.results.size() == a.weights.size());
  Items<RoundItem> rounded;
  Items<ScaledItem> fp8, fp4;
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    const StoredWeight& w = a.weights[i];
    const std::int64_t n = w.master.numel();
    HADAL_CHECK(w.data.numel() == n);
    a.results[i] = {};
    const DType dtype = w.data.dtype();
    if (dtype == DType::bf16 || dtype == DType::f32) {
      rounded.add({.from = data<const float>(w.master),
                   .to = w.data.bytes(),
                   .n = n,
                   .first_chunk = 0,
                   .to_f32 = dtype == DType::f32,
                   .in_groups = in_groups(n, 4, w.master, w.data)},
                  ceil_div(n, kChunk));
      continue;
    }
    HADAL_CHECK(dtype == DType::f8_e4m3 ||
                (dtype == DType::f4_e2m1 && w.master.dim(1) % kTile == 0));
    (dtype == DType::f8_e4m3 ? fp8 : fp4)
        .add(scaled_item(w, i),
             ceil_div(w.master.dim(0), kBlock) * ceil_div(w.master.dim(1), kBlock));
  }
  if (!rounded.items.empty()) {
    launch(stream, "store_weights", round_kernel, rounded.grid(),
           stream.cuda().stage(std::span<const RoundItem>(rounded.items)),
           static_cast<int>(rounded.items.size()));
  }
  if (fp8.items.empty() && fp4.items.empty()) return;  // nothing to find out, nothing to wait for
  std::vector<Found> found(a.weights.size());
  const std::size_t found_bytes = found.size() * sizeof(Found);
  const Tensor scratch = stream.cuda().scratch(static_cast<std::int64_t>(found_bytes));
  stream.cuda().zero(scratch.bytes(), found_bytes);
  auto* const on_device = reinterpret_cast<Found*>(scratch.bytes());
  launch_scaled(stream, store_fp8_kernel, on_device, fp8);
  launch_scaled(stream, store_fp4_kernel, on_device, fp4);
  stream.cuda().download(on_device, found.data(), found_bytes);
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (found[i].non_finite != 0) {
      a.results[i].non_finite = static_cast<std::int64_t>(kNoPlace - found[i].non_finite);
    } else {
      a.results[i].n_lifted = static_cast<std::int64_t>(found[i].n_lifted);
    }
  }
}

}  // namespace hadal::kernels::cuda
