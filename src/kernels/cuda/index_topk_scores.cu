// Index scores, I = sum_h round(relu(round(q_h . k)) * w_h), as integers of the same order.
//
// On tensor cores keys are the rows of a product and heads its columns. A warp keeps 32 keys,
// decoded from E2M1 straight into operand registers, and walks over the heads of one query after
// the other. The columns of the dot product are taken in an order in which a lane's share of a key
// is contiguous: 16 bytes of one scale; the queries lie in shared memory in the same order.
// That order does not matter: a product of two E2M1 values is a multiple of 1/4 up to 36, so 128 of
// them under one scale need 15 bits, and as long as the products of the four blocks' scales differ
// by no more than 2^9 the sum is exact in f32. Beyond that its rounding is the last bit's, far
// below the bf16 that follows.
// The head terms are bf16; a lane adds its heads, ascending, then the four lanes of a quad are
// added: fixed, but not the CPU's order, so a score may differ from the CPU's by one bf16 step.
//
// The plain kernel takes f32 keys and queries, and odd shapes: f32 sums in the CPU's order of
// heads.
#include "kernels/cuda/device/index_topk.cuh"
#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/sequence_table.cuh"

namespace hadal::kernels::cuda::indexer {

namespace {

using bf16 = __nv_bfloat16;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpKeys = 32;
constexpr int kBlockKeys = kWarps * kWarpKeys;
constexpr int kHeadGroup = 32;  // heads whose sums a warp keeps at a time

__device__ int visible(const ScoreItem& item, int query, int ratio) {
  return (item.position + query + 1) / ratio;
}

// Bytes of one head's query in shared memory: 64 more, so that two heads' 64 bytes fill all banks.
__host__ __device__ constexpr int query_stride(int width) {
  return 2 * width + 64;
}
__host__ __device__ constexpr int padded_heads(int n_heads) {
  return (n_heads + kHeadGroup - 1) / kHeadGroup * kHeadGroup;
}

// Two dots to the terms round(relu(round(dot)) * weight).
__device__ __forceinline__ __nv_bfloat162 head_terms(float dot0, float dot1,
                                                     __nv_bfloat162 weights) {
  std::uint32_t dots;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(dots) : "f"(dot1), "f"(dot0));
  return __hmul2(bf16x2_of(dots), weights);
}

// The queries of an item and their weights; heads that are not there are zeros.
template <int kWidth>
__device__ void load_queries(const ScoreParams<bf16>& p, const ScoreItem& item, int n_heads,
                             std::byte* queries, bf16* weights) {
  constexpr int kPieces = kWidth / 4;  // of 4 columns
  for (int i = static_cast<int>(threadIdx.x); i < item.n_queries * n_heads * kPieces;
       i += kThreads) {
    const int piece = i % kPieces, row = i / kPieces, h = row % n_heads, query = row / n_heads;
    // Lane t of a quad has columns [t * kWidth / 4, ...); step j takes four of them.
    const int t = piece / (kWidth / 16), j = piece % (kWidth / 16);
    uint2 values{};
    if (h < p.n_heads) {
      const std::int64_t from = std::int64_t{item.token + query} * p.n_heads + h;
      values = *reinterpret_cast<const uint2*>(p.q + from * kWidth + 4 * piece);
    }
    *reinterpret_cast<uint2*>(queries + row * query_stride(kWidth) + (j / 2 * 4 + t) * 16 +
                              j % 2 * 8) = values;
  }
  for (int i = static_cast<int>(threadIdx.x); i < item.n_queries * n_heads; i += kThreads) {
    const int h = i % n_heads, query = i / n_heads;
    weights[i] = h < p.n_heads ? p.weights[std::int64_t{item.token + query} * p.n_heads + h]
                               : __float2bfloat16_rn(0.0f);
  }
}

// 32 keys as A operands: a[m] are keys 16m + g and 16m + g + 8.
template <int kWidth>
struct Keys {
  static constexpr int kSteps = kWidth / 16;
  std::uint32_t a[2][kSteps][4];

  // Keys [first, first + 32), of which those from n on are copies of the last.
  __device__ void load(const DeviceRows& rows, int first, int n) {
    constexpr int kWords = kWidth / 32;  // of 8 codes, of a lane
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
    std::uint32_t codes[4][kWords];
    __nv_bfloat162 scales[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowAddress row =
          address_of(rows, static_cast<std::uint32_t>(min(first + g + 8 * i, n - 1)));
      if constexpr (kWords == 4) {
        const uint4 x = *reinterpret_cast<const uint4*>(row.data + 16 * t);
        codes[i][0] = x.x, codes[i][1] = x.y, codes[i][2] = x.z, codes[i][3] = x.w;
      } else {
        const uint2 x = *reinterpret_cast<const uint2*>(row.data + 8 * t);
        codes[i][0] = x.x, codes[i][1] = x.y;
      }
      scales[i] = ue8m0_bf16x2(static_cast<std::uint8_t>(row.scales[t * (kWidth / 4) / 32]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const uint4 x = e2m1x8_to_bf16(codes[i][w], scales[i]);
        a[i / 2][2 * w][i % 2] = x.x;
        a[i / 2][2 * w][i % 2 + 2] = x.y;
        a[i / 2][2 * w + 1][i % 2] = x.z;
        a[i / 2][2 * w + 1][i % 2 + 2] = x.w;
      }
    }
  }
};

// Scores of 32 keys: lane (g, t) returns that of key g + 8 t.
template <int kWidth>
__device__ float score_keys(const Keys<kWidth>& keys, const std::byte* queries, const bf16* weights,
                            int n_heads) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  constexpr int kTiles = kHeadGroup / 8;
  float sums[4] = {};  // of keys g, g + 8, g + 16, g + 24
  for (int h0 = 0; h0 < n_heads; h0 += kHeadGroup) {
    float c[2][kTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kWidth / 16; j += 2) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = *reinterpret_cast<const uint4*>(
            queries + (h0 + 8 * n + g) * query_stride(kWidth) + (j / 2 * 4 + t) * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_16816(c[m][n], keys.a[m][j], b.x, b.y);
          mma_16816(c[m][n], keys.a[m][j + 1], b.z, b.w);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const auto w = *reinterpret_cast<const __nv_bfloat162*>(weights + h0 + 8 * n + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* dots = c[i / 2][n] + i % 2 * 2;
        const float2 terms = __bfloat1622float2(head_terms(dots[0], dots[1], w));
        sums[i] = __fadd_rn(__fadd_rn(sums[i], terms.x), terms.y);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[i] = __fadd_rn(sums[i], __shfl_xor_sync(0xffffffffu, sums[i], 1));
    sums[i] = __fadd_rn(sums[i], __shfl_xor_sync(0xffffffffu, sums[i], 2));
  }
  return t == 0 ? sums[0] : t == 1 ? sums[1] : t == 2 ? sums[2] : sums[3];
}

// x: items; y: blocks that share out an item's keys.
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    score_mma_kernel(const __grid_constant__ ScoreParams<bf16> p) {
  extern __shared__ __align__(16) std::byte dynamic[];
  const ScoreItem item = p.items[blockIdx.x];
  const int n_heads = padded_heads(p.n_heads);
  const int n_keys = visible(item, item.n_queries - 1, p.ratio);
  if (static_cast<int>(blockIdx.y) * kBlockKeys >= n_keys) return;
  std::byte* queries = dynamic;
  auto* weights =
      reinterpret_cast<bf16*>(dynamic + item.n_queries * n_heads * query_stride(kWidth));
  load_queries<kWidth>(p, item, n_heads, queries, weights);
  __syncthreads();
  const DeviceRows rows = p.keys[item.sequence];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int mine = lane / 4 + lane % 4 * 8;
  const int stride = static_cast<int>(gridDim.y) * kBlockKeys;
  for (int first = static_cast<int>(blockIdx.y) * kBlockKeys + warp * kWarpKeys; first < n_keys;
       first += stride) {
    Keys<kWidth> keys;
    keys.load(rows, first, n_keys);
    for (int query = 0; query < item.n_queries; ++query) {
      const int n = visible(item, query, p.ratio);
      if (first >= n) continue;
      const float score = score_keys<kWidth>(keys, queries + query * n_heads * query_stride(kWidth),
                                             weights + query * n_heads, n_heads);
      if (first + mine < n) {
        p.scores[(item.row + query) * p.stride + first + mine] = score_key(score, std::uint16_t{});
      }
    }
  }
}

constexpr int kPlainKeys = 64;
constexpr int kPlainHeads = 32;  // whose dots are in shared memory at a time

// x: items; y: 64 keys each.
template <class T>
__global__ void __launch_bounds__(kThreads)
    score_plain_kernel(const __grid_constant__ ScoreParams<T> p) {
  extern __shared__ __align__(16) float decoded[];  // [kPlainKeys, width + 1]
  __shared__ float dots[kPlainHeads][kPlainKeys];
  constexpr int kMine = kPlainHeads / (kThreads / kPlainKeys);
  const ScoreItem item = p.items[blockIdx.x];
  const int first = static_cast<int>(blockIdx.y) * kPlainKeys;
  const int n_keys = visible(item, item.n_queries - 1, p.ratio);
  if (first >= n_keys) return;
  const DeviceRows rows = p.keys[item.sequence];
  const int thread = static_cast<int>(threadIdx.x), stride = p.width + 1;
  for (int r = thread / 32; r < kPlainKeys; r += kWarps) {
    const RowAddress row = address_of(rows, static_cast<std::uint32_t>(min(first + r, n_keys - 1)));
    for (int c = thread % 32; c < p.width; c += 32) {
      decoded[r * stride + c] = decode_value(rows, row.data, row.scales, c);
    }
  }
  __syncthreads();
  const int key = thread % kPlainKeys, h_mine = thread / kPlainKeys * kMine;
  for (int query = 0; query < item.n_queries; ++query) {
    const int n = visible(item, query, p.ratio);
    if (first >= n) continue;
    const std::int64_t token = item.token + query;
    float sum = 0.0f;
    for (int h0 = 0; h0 < p.n_heads; h0 += kPlainHeads) {
      float acc[kMine] = {};
      for (int c = 0; c < p.width; ++c) {
        const float k = decoded[key * stride + c];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const int h = min(h0 + h_mine + i, p.n_heads - 1);
          acc[i] = fmaf(load(p.q[(token * p.n_heads + h) * p.width + c]), k, acc[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) dots[h_mine + i][key] = acc[i];
      __syncthreads();
      if (thread < kPlainKeys) {
        for (int h = h0; h < min(h0 + kPlainHeads, p.n_heads); ++h) {
          const float dot = rounded<T>(dots[h - h0][key]);
          const float weight = load(p.weights[token * p.n_heads + h]);
          sum = __fadd_rn(sum, rounded<T>(__fmul_rn(dot > 0.0f ? dot : 0.0f, weight)));
        }
      }
      __syncthreads();
    }
    if (thread < kPlainKeys && first + key < n) {
      using Key = typename ScoreKey<T>::Type;
      p.scores[(item.row + query) * p.stride + first + key] = score_key(sum, Key{});
    }
  }
}

template <class T>
void launch_plain(Stream& stream, const ScoreParams<T>& p, std::int64_t n_items,
                  std::int64_t n_keys) {
  launch(stream, "index_topk: scores", score_plain_kernel<T>,
         {dim3(static_cast<unsigned>(n_items), blocks_for(n_keys, kPlainKeys)), dim3(kThreads),
          kPlainKeys * (p.width + 1) * 4},
         p);
}

int query_bytes(std::int64_t n_heads, std::int64_t width) {
  return padded_heads(static_cast<int>(n_heads)) * (query_stride(static_cast<int>(width)) + 2);
}

}  // namespace

int queries_on_tensor_cores(std::int64_t n_heads, std::int64_t width) {
  constexpr int kTwoBlocks = 100 * 1024;  // so that two blocks fit a multiprocessor
  constexpr int kOneBlock = 220 * 1024, kMost = 8;
  const int one = query_bytes(n_heads, width);
  if (one > kTwoBlocks) return one > kOneBlock ? 0 : 1;
  return std::min(kMost, kTwoBlocks / one);
}

void score_on_tensor_cores(Stream& stream, const ScoreParams<bf16>& p, std::int64_t n_items,
                           std::int64_t n_keys, int queries_per_item) {
  // A block loads its queries once for all the keys it takes: as many blocks as run at a time.
  const std::int64_t resident = 2 * stream.cuda().device().n_multiprocessors;
  const std::int64_t share = std::min(ceil_div(n_keys, kBlockKeys),
                                      std::max<std::int64_t>(1, ceil_div(resident, n_items)));
  const Grid grid{dim3(static_cast<unsigned>(n_items), static_cast<unsigned>(share)),
                  dim3(kThreads), queries_per_item * query_bytes(p.n_heads, p.width)};
  launch(stream, "index_topk: scores",
         p.width == 128 ? score_mma_kernel<128> : score_mma_kernel<64>, grid, p);
}

void score_plain(Stream& stream, const ScoreParams<float>& p, std::int64_t n_items,
                 std::int64_t n_keys) {
  launch_plain(stream, p, n_items, n_keys);
}
void score_plain(Stream& stream, const ScoreParams<bf16>& p, std::int64_t n_items,
                 std::int64_t n_keys) {
  launch_plain(stream, p, n_items, n_keys);
}

}  // namespace hadal::kernels::cuda::indexer
