// Attention for few tokens, as in decoding one sequence: a token's list is spread over the GPU.
//
// Two launches, and the bits of the kernel that does it in one (sparse_attention_bf16.cu), because
// no chain along the list is cut:
//   scores  one block for a tile of the list and up to 64 heads: dots and the tile's maxima, which
//           nothing before them decides, go to memory
//   values  one block for 16 heads and 32 columns walks the whole list, tile after tile. The
//   maximum
//           so far of every tile is known at the start, so four tiles are weighed at a time; then
//           four warps add them, in order, while the others look up the rows to come.
#include "kernels/cuda/device/attention_tile.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda::attention {

namespace {

constexpr int kValueHeads = 16;
constexpr int kColumns = 32;    // of a block of the second launch
constexpr int kStageTiles = 4;  // weighed at a time: 16 heads x 4 tiles x 4 lanes
constexpr int kStageRows = kStageTiles * kTile;
constexpr int kMmaWarps = kColumns / 8;
constexpr int kOtherThreads = kThreads - 32 * kMmaWarps;
constexpr int kMaxTiles = 512;  // maxima of a head in shared memory
constexpr int kValueStride = kColumns + 8;
constexpr int kWeightStride = kStageRows + 8;
constexpr std::int64_t kMaxScoreBytes = std::int64_t{256} << 20;

// Between the launches, for each token and head: dots of whole tiles, and the scaled maxima.
struct Scores {
  float* dots;  // [n_tokens, n_heads, n_tiles * kTile]
  float* tops;  // [n_tokens, n_heads, n_tiles]
  int n_tiles;  // of the longest list
};

template <int kHeads>
__global__ void __launch_bounds__(kThreads, 1)
    score_kernel(const __grid_constant__ Params<bf16> p, const Scores out) {
  extern __shared__ __align__(16) std::byte dynamic[];
  __shared__ int words[2];
  __shared__ RowAddress rows[kTile];
  const Shared<kHeads> s(dynamic, p.width);
  const int thread = static_cast<int>(threadIdx.x), tile = static_cast<int>(blockIdx.y);
  const std::int64_t t = blockIdx.x;
  const int h0 = static_cast<int>(blockIdx.z) * kHeads;
  const KeyList list = list_of(p, t, words);
  const int n_valid = min(kTile, list.n - tile * kTile);
  if (n_valid <= 0) return;
  if (thread < n_valid) rows[thread] = list.row(tile * kTile + thread);
  load_queries<kHeads>(p, t, h0, s.queries);
  __syncthreads();
  fetch_tile(p.new_rows, rows, n_valid, s.stored);
  copy_async_wait();
  __syncthreads();
  decode_fetched(p.new_rows, s.stored, n_valid, s.keys);
  __syncthreads();
  score_tile(s, p.width);
  __syncthreads();
  const int h = h0 + thread / 4, quarter = thread % 4;
  if (thread < 4 * kHeads) {  // whole warps, whatever heads there are
    float z[kLaneScores];
    load_scores(z, s.scores + thread / 4 * kScoreStride, quarter);
    const float top = scale_scores(z, n_valid, p.scale, quarter);
    if (h < p.n_heads && quarter == 0) out.tops[(t * p.n_heads + h) * out.n_tiles + tile] = top;
  }
  for_pieces(kHeads, kTile / 4, [&](int head, int piece) {
    if (h0 + head >= p.n_heads) return;
    const std::int64_t row = t * p.n_heads + h0 + head;
    *reinterpret_cast<float4*>(out.dots + (row * out.n_tiles + tile) * kTile + 4 * piece) =
        *reinterpret_cast<const float4*>(s.scores + head * kScoreStride + 4 * piece);
  });
}

// Eight columns of a row on their way to shared memory.
struct Piece {
  uint4 bits;  // codes in the first half, or values
  std::uint8_t scale;
};

__device__ __forceinline__ Piece load_piece(const DeviceRows& format, const RowAddress& row,
                                            int c) {
  const int nope = format.width - format.rope;
  Piece piece{};
  if (c < nope) {
    const uint2 codes = *reinterpret_cast<const uint2*>(row.data + c);
    piece.bits.x = codes.x, piece.bits.y = codes.y;
    piece.scale = static_cast<std::uint8_t>(row.scales[c / kKvScaleColumns]);
  } else {
    piece.bits = *reinterpret_cast<const uint4*>(row.data + nope + 2 * (c - nope));
  }
  return piece;
}
__device__ __forceinline__ uint4 decode_piece(const DeviceRows& format, const Piece& piece, int c) {
  if (c >= format.width - format.rope) return piece.bits;
  const __nv_bfloat162 scale = ue8m0_bf16x2(piece.scale);
  const uint2 low = e4m3x4_to_bf16(piece.bits.x, scale);
  const uint2 high = e4m3x4_to_bf16(piece.bits.y, scale);
  return make_uint4(low.x, low.y, high.x, high.y);
}

// peaks[h, i]: the maximum before tile i, -inf before the first. A warp for a head.
__device__ void find_peaks(const float* tops, int n_tiles, float* peaks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float before = -std::numeric_limits<float>::infinity();
  if (lane == 0) peaks[0] = before;
  for (int i0 = 0; i0 < n_tiles; i0 += 32) {
    float top = i0 + lane < n_tiles ? tops[i0 + lane] : -std::numeric_limits<float>::infinity();
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float lower = __shfl_up_sync(0xffffffffu, top, step);
      if (lane >= step) top = fmaxf(top, lower);
    }
    top = fmaxf(top, before);
    if (i0 + lane < n_tiles) peaks[i0 + lane + 1] = top;
    before = __shfl_sync(0xffffffffu, top, 31);
  }
}

struct ValuesShared {
  bf16 values[kStageRows][kValueStride];
  bf16 weights[kValueHeads][kWeightStride];
  RowAddress rows[2][kStageRows];
  float sums[kStageTiles][kValueHeads];
  float shrinks[kStageTiles][kValueHeads];
  float totals[kValueHeads];
  int words[2];
};

__global__ void __launch_bounds__(kThreads)
    value_kernel(const __grid_constant__ Params<bf16> p, const Scores in) {
  extern __shared__ __align__(16) std::byte dynamic[];
  auto& s = *reinterpret_cast<ValuesShared*>(dynamic);
  auto* peaks = reinterpret_cast<float*>(dynamic + sizeof(ValuesShared));  // [16, n_tiles + 1]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::int64_t t = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y) * kColumns;
  const int h0 = static_cast<int>(blockIdx.z) * kValueHeads;
  const KeyList list = list_of(p, t, s.words);
  if (list.n == 0) return;
  const int n_tiles = (list.n + kTile - 1) / kTile, peak_stride = in.n_tiles + 1;
  const int n_stages = (n_tiles + kStageTiles - 1) / kStageTiles;
  // Heads that are not there repeat the last: their results are not written.
  const auto head_row = [&](int h) { return t * p.n_heads + min(h0 + h, p.n_heads - 1); };

  const auto find_row = [&](int stage, int r) {
    const int j = stage * kStageRows + r;
    if (j < list.n) s.rows[stage % 2][r] = list.row(j);
  };
  find_row(0, thread);
  find_row(1, thread);
  for (int h = warp; h < kValueHeads; h += kWarps) {
    find_peaks(in.tops + head_row(h) * in.n_tiles, n_tiles, peaks + h * peak_stride);
  }
  if (thread < kValueHeads) s.totals[thread] = 0.0f;
  __syncthreads();

  // As a loader a thread has 8 columns of every 64th row, as a weigher a quarter of a tile of a
  // head.
  const int c = column + thread % 4 * 8, row = thread / 4;
  const int head = thread / 16, tile_of = thread / 4 % kStageTiles, quarter = thread % 4;
  Piece pieces[kStageTiles];
  float dots[kLaneScores] = {};
  const auto load_stage = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kStageTiles; ++i) {
      const int r = i * kTile + row;
      const bool exists = stage * kStageRows + r < list.n && c < p.width;
      pieces[i] = exists ? load_piece(p.new_rows, s.rows[stage % 2][r], c) : Piece{};
    }
    const int tile = stage * kStageTiles + tile_of;
    if (tile < n_tiles) {
      load_scores(dots, in.dots + (head_row(head) * in.n_tiles + tile) * kTile, quarter);
    }
  };
  load_stage(0);

  float acc[4] = {};
  for (int stage = 0; stage < n_stages; ++stage) {
#pragma unroll
    for (int i = 0; i < kStageTiles; ++i) {
      *reinterpret_cast<uint4*>(&s.values[i * kTile + row][thread % 4 * 8]) =
          decode_piece(p.new_rows, pieces[i], c);
    }
    const int tile = stage * kStageTiles + tile_of;
    {
      // A tile beyond the list has nothing but -inf, and a peak that is there: weights of 0.
      const int known = min(tile, n_tiles - 1);
      const float before = peaks[head * peak_stride + known];
      const float peak = peaks[head * peak_stride + known + 1];
      (void)scale_scores(dots, list.n - tile * kTile, p.scale, quarter);
      const float sum = weigh_scores(dots, peak, &s.weights[head][tile_of * kTile], quarter);
      if (quarter == 0) {
        s.sums[tile_of][head] = sum;
        s.shrinks[tile_of][head] = shrink_of(before, peak);
      }
    }
    if (stage + 1 < n_stages) load_stage(stage + 1);
    __syncthreads();
    const int here = min(kStageTiles, n_tiles - stage * kStageTiles);
    if (warp < kMmaWarps) {
      for (int i = 0; i < here; ++i) {
        const float low = s.shrinks[i][lane / 4], high = s.shrinks[i][lane / 4 + 8];
        acc[0] *= low, acc[1] *= low, acc[2] *= high, acc[3] *= high;
#pragma unroll
        for (int k = i * kTile; k < (i + 1) * kTile; k += 32) {
          std::uint32_t a[2][4], b[4];
          load_matrices(a[0], &s.weights[lane % 16][k + lane / 16 * 8]);
          load_matrices(a[1], &s.weights[lane % 16][k + 16 + lane / 16 * 8]);
          load_matrices_transposed(b, &s.values[k + lane][warp * 8]);
          mma_16816(acc, a[0], b[0], b[1]);
          mma_16816(acc, a[1], b[2], b[3]);
        }
      }
    } else {
      if (warp == kMmaWarps && lane < kValueHeads) {
        float total = s.totals[lane];
        for (int i = 0; i < here; ++i)
          total = __fmaf_rn(total, s.shrinks[i][lane], s.sums[i][lane]);
        s.totals[lane] = total;
      }
      for (int r = thread - 32 * kMmaWarps; r < kStageRows; r += kOtherThreads) {
        find_row(stage + 2, r);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int local = lane / 4 + 8 * half, h = h0 + local;
    if (h >= p.n_heads) continue;
    const Running running{peaks[local * peak_stride + n_tiles], s.totals[local], 0.0f};
    const float sum = denominator(running, p.sinks[h]);
    const std::int64_t out = t * p.n_heads + h;
    const int at = column + warp * 8 + lane % 4 * 2;
    if (warp < kMmaWarps && at < p.width) {
      *reinterpret_cast<__nv_bfloat162*>(p.o + out * p.width + at) =
          __floats2bfloat162_rn(__fdiv_rn(acc[2 * half], sum), __fdiv_rn(acc[2 * half + 1], sum));
    }
    if (p.log_sum_exp != nullptr && blockIdx.y == 0 && warp == 0 && lane % 4 == 0) {
      p.log_sum_exp[out] = running.peak + logf(sum);
    }
  }
}

template <int kHeads>
void launch_scores(Stream& stream, const Params<bf16>& p, const Scores& scores,
                   std::int64_t n_tokens) {
  const int row_bytes = p.new_rows.data_bytes + p.new_rows.scale_bytes;
  launch(stream, "sparse_attention: scores", score_kernel<kHeads>,
         {dim3(static_cast<unsigned>(n_tokens), static_cast<unsigned>(scores.n_tiles),
               blocks_for(p.n_heads, kHeads)),
          dim3(kThreads), Shared<kHeads>::bytes(p.width, row_bytes, true)},
         p, scores);
}

}  // namespace

bool attend_split(Stream& stream, const Params<bf16>& p, std::int64_t n_tokens,
                  std::int64_t longest) {
  const std::int64_t n_tiles = ceil_div(longest, kTile);
  const std::int64_t n_dots = n_tokens * p.n_heads * n_tiles * kTile;
  // With a block for every multiprocessor nothing is gained: scores would travel for nothing.
  const bool few = n_tokens * ceil_div(p.n_heads, 16) < stream.cuda().device().n_multiprocessors;
  if (!few || !p.aligned || n_tiles < kStageTiles || n_tiles > kMaxTiles ||
      n_dots * 4 > kMaxScoreBytes) {
    return false;
  }
  const Tensor dots = stream.cuda().scratch(n_dots * 4);
  const Tensor tops = stream.cuda().scratch(n_tokens * p.n_heads * n_tiles * 4);
  const Scores scores{reinterpret_cast<float*>(dots.bytes()),
                      reinterpret_cast<float*>(tops.bytes()), static_cast<int>(n_tiles)};
  if (p.n_heads > 32) {
    launch_scores<64>(stream, p, scores, n_tokens);
  } else if (p.n_heads > 16) {
    launch_scores<32>(stream, p, scores, n_tokens);
  } else {
    launch_scores<16>(stream, p, scores, n_tokens);
  }
  const int peak_bytes = kValueHeads * static_cast<int>(n_tiles + 1) * 4;
  launch(stream, "sparse_attention: values", value_kernel,
         {dim3(static_cast<unsigned>(n_tokens), blocks_for(p.width, kColumns),
               blocks_for(p.n_heads, kValueHeads)),
          dim3(kThreads), static_cast<int>(sizeof(ValuesShared)) + peak_bytes},
         p, scores);
  return true;
}

}  // namespace hadal::kernels::cuda::attention
