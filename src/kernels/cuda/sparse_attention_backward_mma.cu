// Attention's gradients on tensor cores. A block of eight warps has a tile of 64 (token, head) rows
// or of 64 keys and meets the tiles of the other side one after another, in order, so every sum has
// one order and nothing is added atomically. Against a tile:
//   1. s = q k' and d = do k', each warp 16 rows x 32 keys; p and dz go to shared memory as bf16
//   2. dq += dz k, or dk += dz' q + p' do, each warp an eighth of the columns
// Queries' and keys' gradients are kernels of their own, which do step 1 twice.
#include "kernels/cuda/device/attention_gradient.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kTile = kGradientTile;
constexpr int kThreads = 256;
constexpr int kZPitch = kTile + 8;  // elements; rows start 16 bytes further in the banks

template <int kWidth>
struct Shared {
  static constexpr int kPitch = kWidth + 8;
  alignas(16) __nv_bfloat16 q[kTile * kPitch], d_o[kTile * kPitch], keys[kTile * kPitch];
  alignas(16) __nv_bfloat16 dz[kTile * kZPitch], p[kTile * kZPitch];
  std::uint64_t visible[kTile];
  float log_sum_exp[kTile], delta[kTile];
};

// Zeros after n_rows.
template <int kWidth>
__device__ __forceinline__ void load_tile(__nv_bfloat16* to, const __nv_bfloat16* from,
                                          int n_rows) {
  constexpr int kPieces = kWidth / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kPieces; i += kThreads) {
    const int row = i / kPieces, c = i % kPieces * 8;
    __nv_bfloat16* const at = to + row * Shared<kWidth>::kPitch + c;
    if (row < n_rows) {
      copy_async_16(at, from + row * kWidth + c);
    } else {
      *reinterpret_cast<uint4*>(at) = uint4{};
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void load_queries(Shared<kWidth>& shared, const GradientProblem& p,
                                             std::int64_t row, int n_rows) {
  load_tile<kWidth>(shared.q, static_cast<const __nv_bfloat16*>(p.q) + row * kWidth, n_rows);
  load_tile<kWidth>(shared.d_o, static_cast<const __nv_bfloat16*>(p.d_o) + row * kWidth, n_rows);
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTile) {
    shared.log_sum_exp[i] = i < n_rows ? p.log_sum_exp[row + i] : 0.0f;
    shared.delta[i] = i < n_rows ? p.delta[row + i] : 0.0f;
  }
}

// Which of 64 keys each of the rows sees; whether any sees any. A barrier for the block.
template <int kWidth>
__device__ __forceinline__ bool find_visible(Shared<kWidth>& shared, const GradientProblem& p,
                                             const GradientSequence& s, KeySource source, int row0,
                                             int n_rows, int key0) {
  const int i = static_cast<int>(threadIdx.x);
  std::uint64_t bits = 0;
  if (i < kTile) {
    if (i < n_rows) bits = visible_keys(p, s, source, (row0 + i) / p.n_heads, key0);
    shared.visible[i] = bits;
  }
  return __syncthreads_or(bits != 0 ? 1 : 0) != 0;
}

// Step 1. Nothing that is not visible gets into dz or p.
template <int kWidth, bool kWithP>
__device__ __forceinline__ void weigh(Shared<kWidth>& shared, float scale) {
  constexpr int kPitch = Shared<kWidth>::kPitch;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row0 = warp / 2 * 16, key0 = warp % 2 * 32;
  const int a_at = (row0 + lane % 16) * kPitch + lane / 16 * 8;
  const int b_at = (key0 + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
  float s[4][4] = {}, d[4][4] = {};
#pragma unroll 4
  for (int c = 0; c < kWidth; c += 16) {
    std::uint32_t q[4], d_o[4], k[2][4];
    load_matrices(q, shared.q + a_at + c);
    load_matrices(d_o, shared.d_o + a_at + c);
    load_matrices(k[0], shared.keys + b_at + c);
    load_matrices(k[1], shared.keys + b_at + 16 * kPitch + c);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      mma_16816(s[n], q, k[n / 2][n % 2 * 2], k[n / 2][n % 2 * 2 + 1]);
      mma_16816(d[n], d_o, k[n / 2][n % 2 * 2], k[n / 2][n % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + lane / 4 + 8 * half;
    const std::uint64_t visible = shared.visible[row];
    const float log_sum_exp = shared.log_sum_exp[row], delta = shared.delta[row];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int key = key0 + 8 * n + lane % 4 * 2;
      float p[2], dz[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool sees = (visible >> (key + j) & 1u) != 0;
        p[j] = sees ? expf(s[n][2 * half + j] * scale - log_sum_exp) : 0.0f;
        dz[j] = sees ? scale * p[j] * (d[n][2 * half + j] - delta) : 0.0f;
      }
      const int at = row * kZPitch + key;
      *reinterpret_cast<__nv_bfloat162*>(shared.dz + at) = __floats2bfloat162_rn(dz[0], dz[1]);
      if constexpr (kWithP) {
        *reinterpret_cast<__nv_bfloat162*>(shared.p + at) = __floats2bfloat162_rn(p[0], p[1]);
      }
    }
  }
}

// This warp's columns of a [64, width] result: [block of 16 rows][block of 8 columns].
template <int kWidth>
struct Sums {
  static constexpr int kBlocks = kWidth / 64;
  float v[4][kBlocks][4] = {};

  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x) / 32 * (kWidth / 8);
  }

  // += a b, b [64, width] in shared memory; a [64, 64], stored transposed or not.
  template <bool kTransposed>
  __device__ __forceinline__ void add(const __nv_bfloat16* a, const __nv_bfloat16* b) {
    constexpr int kPitch = Shared<kWidth>::kPitch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int k = 0; k < kTile; k += 32) {
      std::uint32_t right[kBlocks][4];
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        load_matrices_transposed(right[n], b + (k + lane) * kPitch + first_column() + 8 * n);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t left[4];
          const int k0 = k + 16 * half;
          if constexpr (kTransposed) {
            load_matrices_transposed(
                left, a + (k0 + lane / 16 * 8 + lane % 8) * kZPitch + 16 * m + lane / 8 % 2 * 8);
          } else {
            load_matrices(left, a + (16 * m + lane % 16) * kZPitch + k0 + lane / 16 * 8);
          }
#pragma unroll
          for (int n = 0; n < kBlocks; ++n) {
            mma_16816(v[m][n], left, right[n][2 * half], right[n][2 * half + 1]);
          }
        }
      }
    }
  }

  // The first n_rows rows.
  __device__ __forceinline__ void store(float* out, int n_rows) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + lane / 4 + 8 * half;
        if (row >= n_rows) continue;
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
          float* const at =
              out + std::int64_t{row} * kWidth + first_column() + 8 * n + lane % 4 * 2;
          *reinterpret_cast<float2*>(at) = {v[m][n][2 * half], v[m][n][2 * half + 1]};
        }
      }
    }
  }
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(GradientProblem p, const QueryTile* tiles) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<kWidth>*>(memory);
  const QueryTile tile = tiles[blockIdx.x];
  const GradientSequence s = p.sequences[tile.sequence];
  const int n_rows = min(kTile, s.n_tokens * p.n_heads - tile.row0);
  const std::int64_t row = s.begin * p.n_heads + tile.row0;
  load_queries(shared, p, row, n_rows);
  const int first_token = tile.row0 / p.n_heads;
  const int last_token = (tile.row0 + n_rows - 1) / p.n_heads;
  Sums<kWidth> sums;
  for (const KeySource source : {KeySource::window, KeySource::entries}) {
    if (source == KeySource::entries && s.n_entries == 0) break;
    const auto* keys =
        source == KeySource::window
            ? static_cast<const __nv_bfloat16*>(p.window_rows) + s.window_row * kWidth
            : static_cast<const __nv_bfloat16*>(p.entry_rows) + s.entry_row * kWidth;
    const int begin = keys_of(p, s, source, first_token).begin;
    const int end = keys_of(p, s, source, last_token).end;
    for (int key0 = begin; key0 < end; key0 += kTile) {
      // Its barrier is also the one after which the last tile's keys and dz are free.
      if (!find_visible(shared, p, s, source, tile.row0, n_rows, key0)) continue;
      load_tile<kWidth>(shared.keys, keys + std::int64_t{key0} * kWidth, min(kTile, end - key0));
      copy_async_wait();
      __syncthreads();
      weigh<kWidth, false>(shared, p.scale);
      __syncthreads();
      sums.template add<false>(shared.dz, shared.keys);
    }
  }
  sums.store(p.dq + row * kWidth, n_rows);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    key_gradient_kernel(GradientProblem p, const KeyTile* tiles) {
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<kWidth>*>(memory);
  const KeyTile tile = tiles[blockIdx.x];
  const GradientSequence s = p.sequences[tile.sequence];
  const auto* keys = tile.source == KeySource::window
                         ? static_cast<const __nv_bfloat16*>(p.window_rows) + s.window_row * kWidth
                         : static_cast<const __nv_bfloat16*>(p.entry_rows) + s.entry_row * kWidth;
  load_tile<kWidth>(shared.keys, keys + std::int64_t{tile.key0} * kWidth, tile.n_keys);
  Sums<kWidth> sums;
  for (int row0 = tile.row_begin; row0 < tile.row_end; row0 += kTile) {
    const int n_rows = min(kTile, tile.row_end - row0);
    if (!find_visible(shared, p, s, tile.source, row0, n_rows, tile.key0)) continue;
    load_queries(shared, p, s.begin * p.n_heads + row0, n_rows);
    copy_async_wait();
    __syncthreads();
    weigh<kWidth, true>(shared, p.scale);
    __syncthreads();
    sums.template add<true>(shared.dz, shared.q);
    sums.template add<true>(shared.p, shared.d_o);
  }
  copy_async_wait();  // where no row saw anything
  sums.store(tile.out, tile.n_keys);
}

template <class Fn>
bool with_width(std::int64_t width, Fn&& fn) {
  switch (width) {
    case 64:
      fn.template operator()<64>();
      return true;
    case 128:
      fn.template operator()<128>();
      return true;
    case 192:
      fn.template operator()<192>();
      return true;
    case 256:
      fn.template operator()<256>();
      return true;
    case 512:
      fn.template operator()<512>();
      return true;
    default:
      return false;
  }
}

}  // namespace

bool has_mma_gradient(std::int64_t width) {
  return width == 64 || width == 128 || width == 192 || width == 256 || width == 512;
}

void attention_query_gradient_mma(Stream& stream, const GradientProblem& problem,
                                  std::span<const QueryTile> tiles) {
  const QueryTile* staged = stream.cuda().stage(tiles);
  HADAL_CHECK(with_width(problem.width, [&]<int kWidth>() {
    launch(stream, "sparse_attention_backward queries", query_gradient_kernel<kWidth>,
           {dim3(static_cast<unsigned>(tiles.size())), dim3(kThreads), sizeof(Shared<kWidth>)},
           problem, staged);
  }));
}

void attention_key_gradient_mma(Stream& stream, const GradientProblem& problem,
                                std::span<const KeyTile> tiles) {
  const KeyTile* staged = stream.cuda().stage(tiles);
  HADAL_CHECK(with_width(problem.width, [&]<int kWidth>() {
    launch(stream, "sparse_attention_backward keys", key_gradient_kernel<kWidth>,
           {dim3(static_cast<unsigned>(tiles.size())), dim3(kThreads), sizeof(Shared<kWidth>)},
           problem, staged);
  }));
}

}  // namespace hadal::kernels::cuda
