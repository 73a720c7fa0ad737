// A tile of a list in shared memory, as bf16 keys that are the values too, and its scores on tensor
// cores. What the bf16 kernels of attention share.
#pragma once

#include "kernels/cuda/device/attention_list.cuh"
#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace hadal::kernels::cuda::attention {

using bf16 = __nv_bfloat16;

inline constexpr int kProbabilityStride = kTile + 8;  // 16 bytes on: no bank conflicts

__host__ __device__ constexpr int key_stride(int width) {
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
    return (kHeads + kTile) * key_stride(width) * 2 + kHeads * kProbabilityStride * 2 +
           kHeads * kScoreStride * 4 + (aligned ? kTile * row_bytes : 0);
  }
  __device__ Shared(std::byte* base, int width) {
    queries = reinterpret_cast<bf16*>(base);
    keys = queries + kHeads * key_stride(width);
    probabilities = keys + kTile * key_stride(width);
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

// Heads [h0, h0 + kHeads) of token t; those that are not there are zeros.
template <int kHeads>
__device__ __forceinline__ void load_queries(const Params<bf16>& p, std::int64_t t, int h0,
                                             bf16* queries) {
  for_pieces(kHeads, p.width / 8, [&](int h, int piece) {
    const bf16* from = p.q + (t * p.n_heads + h0 + h) * p.width + 8 * piece;
    *reinterpret_cast<uint4*>(queries + h * key_stride(p.width) + 8 * piece) =
        h0 + h < p.n_heads ? *reinterpret_cast<const uint4*>(from) : uint4{};
  });
}

// Starts the copies of a tile's rows as stored.
__device__ __forceinline__ void fetch_tile(const DeviceRows& format, const RowAddress* rows,
                                           int n_rows, std::byte* stored) {
  for_pieces(n_rows, format.data_bytes / 16, [&](int r, int piece) {
    copy_async_16(stored + r * format.data_bytes + 16 * piece, rows[r].data + 16 * piece);
  });
  std::byte* scales = stored + kTile * format.data_bytes;
  for_pieces(n_rows, format.scale_bytes / 8, [&](int r, int piece) {
    copy_async_8(scales + r * format.scale_bytes + 8 * piece, rows[r].scales + 8 * piece);
  });
}

// Fetched rows to keys, 8 columns at a time; rows that are not there become zeros.
__device__ __forceinline__ void decode_fetched(const DeviceRows& format, const std::byte* stored,
                                               int n_rows, bf16* keys) {
  const int nope = format.width - format.rope, stride = key_stride(format.width);
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
__device__ __forceinline__ void decode_stored(const DeviceRows& format, const RowAddress* rows,
                                              int n_rows, bf16* keys) {
  const int stride = key_stride(format.width);
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
  const int stride = key_stride(width);
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

}  // namespace hadal::kernels::cuda::attention
