// Attention of bf16 activations on tensor cores. One block for a token and 16, 32 or 64 of its
// heads: with one key-value row for all heads, heads are the rows of the products, so a decoding
// step is one of matrices too.
//
// A tile of the list comes as stored (cp.async, while the tile before is worked on), is decoded to
// bf16 once, exactly, and serves as keys and as values: 8 warps share out the scores [heads, 64] as
// m16 x n8 pieces, then each takes every eighth 16 columns of the values. Neither split cuts a sum:
// more or fewer heads a block are the same bits.
#include "kernels/cuda/device/attention_tile.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda::attention {

namespace {

constexpr int kMaxWidth = 512;
constexpr int kColumnGroups = kMaxWidth / 16 / kWarps;  // 16 columns each, of a warp

template <int kHeads>
using Accumulators = float[kHeads / 16][kColumnGroups][2][4];

// acc = acc * shrink + P V; a sum's 16-row steps ascend.
template <int kHeads>
__device__ void add_values(const Shared<kHeads>& s, const Running* running, int width,
                           Accumulators<kHeads>& acc) {
  constexpr int kMTiles = kHeads / 16;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int stride = key_stride(width);
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
  load_queries<kHeads>(p, t, h0, s.queries);
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

void attend_bf16(Stream& stream, const Params<bf16>& params, std::int64_t n_tokens,
                 std::int64_t longest) {
  if (attend_split(stream, params, n_tokens, longest)) return;
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
