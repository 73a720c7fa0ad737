// Products in plain f32, one fused multiply-add after another: for f32 activations with weights of
// any format, and for f32 weights. Never TF32.
//
// A block of threads has 64 weight rows and kN tokens, which pass through shared memory 16 columns
// at a time; a thread has four rows and kN / 16 tokens. Columns ascend in one chain within 128 of
// them and the sums of those are added in ascending order: a chain that depends on nothing else.
#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kWeightRows = 64, kDepth = 16;

// Element (row, col) of a stored weight; row of the whole weight.
__device__ __forceinline__ float weight_at(const WeightShape& s, const Matrix& w, int row,
                                           int col) {
  const std::byte* data = w.data + row * s.row_bytes;
  switch (s.format) {
    case WeightFormat::f32:
      return reinterpret_cast<const float*>(data)[col];
    case WeightFormat::bf16:
      return load(reinterpret_cast<const __nv_bfloat16*>(data)[col]);
    case WeightFormat::fp8:
      return e4m3_to_float(reinterpret_cast<const std::uint8_t*>(data)[col]) *
             fp8_scale(s, scale_row(s, w.scale, row), col / kBlockCols);
    case WeightFormat::fp4:
      break;
  }
  const std::uint32_t byte = reinterpret_cast<const std::uint8_t*>(data)[col / 2];
  const std::uint32_t scale = fp4_scale(s, scale_row(s, w.scale, row), col / kFp4Block.cols);
  return e2m1_to_float(byte >> (col % 2 * 4)) * ue8m0_to_float(static_cast<std::uint8_t>(scale));
}

template <class T, int kN, bool kPair>
__global__ __launch_bounds__(kThreads) void f32_kernel(const Matmul m) {
  constexpr int kMatrices = kPair ? 2 : 1, kTokens = kN / 16;
  __shared__ float weights[kMatrices][kDepth][kWeightRows + 4];
  __shared__ float tokens[kDepth][kN + 1];
  Place place;
  if (!find_place<kPair>(m, place)) return;
  const WeightShape& s = m.shape;
  const int thread = static_cast<int>(threadIdx.x), k_of = thread % kDepth, r_of = thread / kDepth;
  const int row_base = static_cast<int>(blockIdx.x) * kWeightRows;
  const int row_quad = thread % 16 * 4, token0 = thread / 16 * kTokens;
  const T* x[ceil_div(kN, 16)];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int n = r_of + 16 * i;
    x[i] = n < place.n_rows ? static_cast<const T*>(m.x) + x_offset_of(m, place, n) : nullptr;
  }

  float total[kMatrices][4][kTokens] = {}, acc[kMatrices][4][kTokens] = {};
  for (int k0 = 0; k0 < s.cols; k0 += kDepth) {
    const int k = k0 + k_of;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWeightRows / 16; ++i) {
      const int r = r_of + 16 * i, local = row_base + r;
      const bool valid = local < place.rows && k < s.cols;
#pragma unroll
      for (int a = 0; a < kMatrices; ++a) {
        const Matrix& w = a == 0 ? place.weight : place.up;
        weights[a][k_of][r] = valid ? weight_at(s, w, place.first_weight_row + local, k) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      tokens[k_of][r_of + 16 * i] = x[i] != nullptr && k < s.cols ? load(x[i][k]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int a = 0; a < kMatrices; ++a) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int n = 0; n < kTokens; ++n) {
            acc[a][r][n] = fmaf(weights[a][d][row_quad + r], tokens[d][token0 + n], acc[a][r][n]);
          }
        }
      }
    }
    if (k0 % kBlockCols == kBlockCols - kDepth || k0 + kDepth >= s.cols) {
#pragma unroll
      for (int a = 0; a < kMatrices; ++a) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int n = 0; n < kTokens; ++n) {
            total[a][r][n] += acc[a][r][n];
            acc[a][r][n] = 0.0f;
          }
        }
      }
    }
  }

  ClampTally tally;
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int token = token0 + n, local = row_base + row_quad + r;
      if (token >= place.n_rows || local >= place.rows) continue;
      if constexpr (kPair)
        put_swiglu(m, place, token, local, total[0][r][n], total[1][r][n], tally);
      else
        put_y(m, place, token, local, total[0][r][n]);
    }
  }
  if constexpr (kPair) {
    if (m.clamps != nullptr) tally.add_to(m.clamps);
  }
}

template <class T, int kN>
void launch_f32(Stream& stream, const Matmul& m, bool pair) {
  const unsigned x = blocks_for(m.shape.rows / m.n_groups, kWeightRows);
  const dim3 blocks = m.tiles != nullptr
                          ? dim3(x, static_cast<unsigned>(m.max_tiles), 1)
                          : dim3(x, blocks_for(m.n_rows, kN), static_cast<unsigned>(m.n_groups));
  launch(stream, pair ? "matmul_f32_swiglu" : "matmul_f32",
         pair ? f32_kernel<T, kN, true> : f32_kernel<T, kN, false>, {blocks, dim3(kThreads)}, m);
}

}  // namespace

void matmul_f32(Stream& stream, const Matmul& m, bool pair) {
  const auto with = [&]<class T>() {
    switch (m.tile_rows) {
      case kStreamRows:
        return launch_f32<T, kStreamRows>(stream, m, pair);
      case kSmallTileRows:
        return launch_f32<T, kSmallTileRows>(stream, m, pair);
      default:
        HADAL_CHECK(m.tile_rows == kTileRows);
        return launch_f32<T, kTileRows>(stream, m, pair);
    }
  };
  if (m.x_f32)
    with.template operator()<float>();
  else
    with.template operator()<__nv_bfloat16>();
}

}  // namespace hadal::kernels::cuda
