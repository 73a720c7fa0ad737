// Attention of bf16 activations on tensor cores. One block for a token and 16, 32 or 64 of its
// heads: with one key-value row for all heads, heads are the rows of the products, so a decoding
// step is one of matrices too.
//
// A tile of the list comes as stored (cp.async, while the tile before is worked on), is decoded to
// bf16 once, exactly, and serves as keys and as values: 8 warps share out the scores [heads, 64] as
// m16 x n8 pieces, then each takes every eighth 16 columns of the values. Neither split cuts a sum:
// more or fewer heads a block are the same bits.
#include "kernels/cuda/device/attention_list.cuh"
#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace hadal::kernels::cuda::attention {

namespace {

using bf16 = __nv_bfloat16;

constexpr int kMaxWidth = 512;
constexpr int kColumnGroups = kMaxWidth / 16 / kWarps;  // 16 columns each, of a warp
constexpr int kProbabilityStride = kTile + 8;           // 16 bytes on: no bank conflicts

__host__ __device__ constexpr int stride_of(int width) {
  return width + 8;
}

// Dynamic shared memory; every part begins at 16 bytes.
template <int kHeads>
struct Shared {
  bf16* queries;        // [kHeads, stride]
  bf16* keys;           // [kTile, stride], the values too
  bf16* probabilities;  // [kHeads, kProbabilityStride]
  float* scores;        // [kHeads, kScoreStride]
  std::byte* stored;    // [kTile, data_bytes], then [kTile, scale_bytes]: the next tile, as stored

  static constexpr int bytes(int width, int row_bytes, bool aligned) {
    return (kHeads + kTile) * stride_of(width) * 2 + kHeads * kProbabilityStride * 2 +
           kHeads * kScoreStride * 4 + (aligned ? kTile * row_bytes : 0);
  }
  __device__ Shared(std::byte* base, int width) {
    queries = reinterpret_cast<bf16*>(base);
    keys = queries + kHeads * stride_of(width);
    probabilities = keys + kTile * stride_of(width);
    scores = reinterpret_cast<float*>(probabilities + kHeads * kProbabilityStride);
    stored = reinterpret_cast<std::byte*>(scores + kHeads * kScoreStride);
  }
};

// Calls f(row, piece) for the pieces [0, per_row) of rows [0, n_rows), without dividing each time.
template <class F>
__device__ __forceinline__ void for_pieces(int n_rows, int per_row, F&& f) {
  const int row_step = kThreads / per_row, piece_step = kThreads % per_row;
  int row = static_cast<int>(threadIdx.x) / per_row,
      piece = static_cast<int>(threadIdx.x) % per_row;
  while (row < n_rows) {
    f(row, piece);
    row += row_step;
    piece += piece_step;
    if (piece >= per_row) {
      piece -= per_row;
      ++row;
    }
  }
}

// Starts the copies of a tile's rows as stored.
__device__ void fetch_tile(const DeviceRows& format, const RowAddress* rows, int n_rows,
                           std::byte* stored) {
  for_pieces(n_rows, format.data_bytes / 16, [&](int r, int piece) {
    copy_async_16(stored + r * format.data_bytes + 16 * piece, rows[r].data + 16 * piece);
  });
  std::byte* scales = stored + kTile * format.data_bytes;
  for_pieces(n_rows, format.scale_bytes / 8, [&](int r, int piece) {
    copy_async_8(scales + r * format.scale_bytes + 8 * piece, rows[r].scales + 8 * piece);
  });
}

// Fetched rows to keys, 8 columns at a time; rows that are not there become zeros.
__device__ void decode_fetched(const DeviceRows& format, const std::byte* stored, int n_rows,
                               bf16* keys) {
  const int nope = format.width - format.rope, stride = stride_of(format.width);
  const std::byte* scales = stored + kTile * format.data_bytes;
  for_pieces(kTile, format.width / 8, [&](int r, int piece) {
    const int c = 8 * piece;
    uint4 values{};
    if (r < n_rows) {
      const std::byte* row = stored + r * format.data_bytes;
      if (c < nope) {
        const uint2 codes = *reinterpret_cast<const uint2*>(row + c);
        const __nv_bfloat162 scale = ue8m0_bf16x2(
            static_cast<std::uint8_t>(scales[r * format.scale_bytes + c / kKvScaleColumns]));
        const uint2 low = e4m3x4_to_bf16(codes.x, scale), high = e4m3x4_to_bf16(codes.y, scale);
        values = make_uint4(low.x, low.y, high.x, high.y);
      } else {
        values = *reinterpret_cast<const uint4*>(row + nope + 2 * (c - nope));
      }
    }
    *reinterpret_cast<uint4*>(keys + r * stride + c) = values;
  });
}

// Rows of any format, straight from where they are stored.
__device__ void decode_stored(const DeviceRows& format, const RowAddress* rows, int n_rows,
                              bf16* keys) {
  const int stride = stride_of(format.width);
  for_pieces(kTile, format.width / 2, [&](int r, int piece) {
    const int c = 2 * piece;
    float x = 0.0f, y = 0.0f;
    if (r < n_rows) {
      x = decode_value(format, rows[r].data, rows[r].scales, c);
      y = decode_value(format, rows[r].data, rows[r].scales, c + 1);
    }
    *reinterpret_cast<__nv_bfloat162*>(keys + r * stride + c) = __floats2bfloat162_rn(x, y);
  });
}

// scores[h, j] = q_h . k_j: a sum's 16-column steps ascend.
template <int kHeads>
__device__ void score_tile(const Shared<kHeads>& s, int width) {
  constexpr int kMTiles = kHeads / 16;  // also the n8 tiles of a warp: 8 warps on kMTiles x 8
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int stride = stride_of(width);
  const int m0 = warp % kMTiles * 16, n0 = warp / kMTiles * (8 * kMTiles);
  float c[kMTiles][4] = {};
  const bf16* a_row = s.queries + (m0 + lane % 16) * stride + lane / 16 * 8;
  if constexpr (kMTiles == 1) {
    const bf16* b_row = s.keys + (n0 + lane % 8) * stride + lane / 8 % 2 * 8;
#pragma unroll 4
    for (int k = 0; k < width; k += 16) {
      std::uint32_t a[4], b[2];
      load_matrices(a, a_row + k);
      load_matrices(b, b_row + k);
      mma_16816(c[0], a, b[0], b[1]);
    }
  } else {
    const bf16* b_row = s.keys + (n0 + lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
#pragma unroll 4
    for (int k = 0; k < width; k += 16) {
      std::uint32_t a[4];
      load_matrices(a, a_row + k);
#pragma unroll
      for (int n = 0; n < kMTiles; n += 2) {
        std::uint32_t b[4];
        load_matrices(b, b_row + 8 * n * stride + k);
        mma_16816(c[n], a, b[0], b[1]);
        mma_16816(c[n + 1], a, b[2], b[3]);
      }
    }
  }
  float* out = s.scores + (m0 + lane / 4) * kScoreStride + n0 + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kMTiles; ++n) {
    *reinterpret_cast<float2*>(out + 8 * n) = make_float2(c[n][0], c[n][1]);
    *reinterpret_cast<float2*>(out + 8 * kScoreStride + 8 * n) = make_float2(c[n][2], c[n][3]);
  }
}

template <int kHeads>
using Accumulators = float[kHeads / 16][kColumnGroups][2][4];

// acc = acc * shrink + P V; a sum's 16-row steps ascend.
template <int kHeads>
__device__ void add_values(const Shared<kHeads>& s, const Running* running, int width,
                           Accumulators<kHeads>& acc) {
  constexpr int kMTiles = kHeads / 16;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int stride = stride_of(width);
#pragma unroll
  for (int m = 0; m < kMTiles; ++m) {
    const float low = running[16 * m + lane / 4].shrink;
    const float high = running[16 * m + lane / 4 + 8].shrink;
    if (low == 1.0f && high == 1.0f) continue;
#pragma unroll
    for (int i = 0; i < kColumnGroups; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        acc[m][i][n][0] *= low;
        acc[m][i][n][1] *= low;
        acc[m][i][n][2] *= high;
        acc[m][i][n][3] *= high;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kTile; k += 16) {
    std::uint32_t a[kMTiles][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      load_matrices(
          a[m], s.probabilities + (16 * m + lane % 16) * kProbabilityStride + k + lane / 16 * 8);
    }
#pragma unroll
    for (int i = 0; i < kColumnGroups; ++i) {
      const int column = (warp + i * kWarps) * 16;
      if (column >= width) break;
      std::uint32_t b[4];
      load_matrices_transposed(b, s.keys + (k + lane % 16) * stride + column + lane / 16 * 8);
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        mma_16816(acc[m][i][0], a[m], b[0], b[1]);
        mma_16816(acc[m][i][1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int kHeads>
__device__ void write_output(const Params<bf16>& p, std::int64_t t, int h0, const Running* running,
                             const Accumulators<kHeads>& acc) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < kHeads / 16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int local = 16 * m + 8 * half + lane / 4, h = h0 + local;
      if (h >= p.n_heads) continue;
      const float sum = denominator(running[local], p.sinks[h]);
      const std::int64_t row = t * p.n_heads + h;
#pragma unroll
      for (int i = 0; i < kColumnGroups; ++i) {
        const int column = (warp + i * kWarps) * 16 + lane % 4 * 2;
        if (column >= p.width) break;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          *reinterpret_cast<__nv_bfloat162*>(p.o + row * p.width + column + 8 * n) =
              __floats2bfloat162_rn(__fdiv_rn(acc[m][i][n][2 * half], sum),
                                    __fdiv_rn(acc[m][i][n][2 * half + 1], sum));
        }
      }
      if (p.log_sum_exp != nullptr && warp == 0 && lane % 4 == 0) {
        p.log_sum_exp[row] = running[local].peak + logf(sum);
      }
    }
  }
}

template <int kHeads>
__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const __grid_constant__ Params<bf16> p) {
  extern __shared__ __align__(16) std::byte dynamic[];
  __shared__ int words[2];
  __shared__ Running running[kHeads];
  __shared__ RowAddress rows[2][kTile];
  const Shared<kHeads> s(dynamic, p.width);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t t = blockIdx.x;
  const int h0 = static_cast<int>(blockIdx.y) * kHeads;
  const KeyList list = list_of(p, t, words);
  if (list.n == 0) return;

  const auto find_rows = [&](int tile) {
    const int j = tile * kTile + thread;
    if (thread < kTile && j < list.n) rows[tile % 2][thread] = list.row(j);
  };
  const auto n_rows = [&](int tile) { return min(kTile, list.n - tile * kTile); };
  const auto fetch = [&](int tile) {
    if (p.aligned) fetch_tile(p.new_rows, rows[tile % 2], n_rows(tile), s.stored);
  };
  find_rows(0);
  if (thread < kHeads) running[thread] = {-std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
  for_pieces(kHeads, p.width / 8, [&](int h, int piece) {
    const bf16* from = p.q + (t * p.n_heads + h0 + h) * p.width + 8 * piece;
    *reinterpret_cast<uint4*>(s.queries + h * stride_of(p.width) + 8 * piece) =
        h0 + h < p.n_heads ? *reinterpret_cast<const uint4*>(from) : uint4{};
  });
  __syncthreads();
  fetch(0);

  Accumulators<kHeads> acc = {};
  const int n_tiles = (list.n + kTile - 1) / kTile;
  for (int tile = 0; tile < n_tiles; ++tile) {
    copy_async_wait();
    __syncthreads();  // the tile is here, and the last one has been used
    if (p.aligned) {
      decode_fetched(p.new_rows, s.stored, n_rows(tile), s.keys);
    } else {
      decode_stored(p.new_rows, rows[tile % 2], n_rows(tile), s.keys);
    }
    if (tile + 1 < n_tiles) find_rows(tile + 1);
    __syncthreads();
    if (tile + 1 < n_tiles) fetch(tile + 1);
    score_tile(s, p.width);
    __syncthreads();
    if (thread < 4 * kHeads) {
      softmax_tile(s.scores + thread / 4 * kScoreStride,
                   s.probabilities + thread / 4 * kProbabilityStride, n_rows(tile), p.scale,
                   running[thread / 4], thread % 4);
    }
    __syncthreads();
    add_values<kHeads>(s, running, p.width, acc);
  }
  write_output<kHeads>(p, t, h0, running, acc);
}

template <int kHeads>
void launch_heads(Stream& stream, const Params<bf16>& p, std::int64_t n_tokens) {
  const int row_bytes = p.new_rows.data_bytes + p.new_rows.scale_bytes;
  launch(stream, "sparse_attention", attend_kernel<kHeads>,
         {dim3(static_cast<unsigned>(n_tokens), blocks_for(p.n_heads, kHeads)), dim3(kThreads),
          Shared<kHeads>::bytes(p.width, row_bytes, p.aligned)},
         p);
}

}  // namespace

void attend_bf16(Stream& stream, const Params<bf16>& params, std::int64_t n_tokens) {
  // As many heads a block as leave every multiprocessor a block: a tile is read once a block.
  const std::int64_t wanted = stream.cuda().device().n_multiprocessors;
  const auto fills = [&](int heads) {
    return params.n_heads > heads / 2 && n_tokens * ceil_div(params.n_heads, heads) >= wanted;
  };
  if (fills(64)) return launch_heads<64>(stream, params, n_tokens);
  if (fills(32)) return launch_heads<32>(stream, params, n_tokens);
  launch_heads<16>(stream, params, n_tokens);
}

}  // namespace hadal::kernels::cuda::attention
