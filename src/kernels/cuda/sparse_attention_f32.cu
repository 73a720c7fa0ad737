// Attention of f32 activations, for tests and small models: plain f32 sums, one block for a token
// and 16 heads. A tile of decoded rows lies in shared memory and serves scores and values.
#include "kernels/cuda/device/attention_list.cuh"
#include "kernels/cuda/device/kv_decode.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda::attention {

namespace {

constexpr int kHeads = 16;

// Floats between rows in shared memory: whole float4s, and eight rows in different banks.
__host__ __device__ constexpr int stride_of(int width) {
  return (width + 3) / 4 * 4 + 4;
}

__device__ float dot(const float* a, const float* b, int n) {
  float sum = 0.0f;
  for (int c = 0; c < n; c += 4) {
    const float4 x = *reinterpret_cast<const float4*>(a + c);
    const float4 y = *reinterpret_cast<const float4*>(b + c);
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
    sum = fmaf(x.z, y.z, sum);
    sum = fmaf(x.w, y.w, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads, 1)
    attend_kernel(const __grid_constant__ Params<float> p) {
  extern __shared__ __align__(16) float shared[];
  __shared__ int words[2];
  __shared__ Running running[kHeads];
  const int stride = stride_of(p.width), thread = static_cast<int>(threadIdx.x);
  float* queries = shared;                  // [kHeads, stride]
  float* rows = queries + kHeads * stride;  // [kTile, stride]
  float* scores = rows + kTile * stride;    // [kHeads, kScoreStride]
  const std::int64_t t = blockIdx.x;
  const int h0 = static_cast<int>(blockIdx.y) * kHeads;
  const KeyList list = list_of(p, t, words);
  if (list.n == 0) return;

  // Columns up to a multiple of 4 and heads that are not there are zeros.
  for (int i = thread; i < kHeads * stride; i += kThreads) {
    const int h = i / stride, c = i % stride;
    const bool exists = h0 + h < p.n_heads && c < p.width;
    queries[i] = exists ? p.q[(t * p.n_heads + h0 + h) * p.width + c] : 0.0f;
  }
  if (thread < kHeads) {
    running[thread] = {-std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
  }
  float acc[kHeads][2] = {};
  const int column = 2 * thread;
  for (int j0 = 0; j0 < list.n; j0 += kTile) {
    const int n_valid = min(kTile, list.n - j0);
    __syncthreads();  // the last tile's rows and probabilities have been used
    for (int r = thread / 32; r < kTile; r += kWarps) {
      const RowAddress row = r < n_valid ? list.row(j0 + r) : RowAddress{};
      // The window's format is everybody's.
      for (int c = thread % 32; c < stride; c += 32) {
        rows[r * stride + c] =
            r < n_valid && c < p.width ? decode_value(p.new_rows, row.data, row.scales, c) : 0.0f;
      }
    }
    __syncthreads();
    for (int h = thread % 4; h < kHeads; h += 4) {
      scores[h * kScoreStride + thread / 4] =
          dot(queries + h * stride, rows + thread / 4 * stride, p.width);
    }
    __syncthreads();
    if (thread < 4 * kHeads) {
      float* z = scores + thread / 4 * kScoreStride;
      softmax_tile(z, z, n_valid, p.scale, running[thread / 4], thread % 4);
    }
    __syncthreads();
    if (column < p.width) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        acc[h][0] *= running[h].shrink;
        acc[h][1] *= running[h].shrink;
      }
      for (int r = 0; r < n_valid; ++r) {
        const float2 value = *reinterpret_cast<const float2*>(rows + r * stride + column);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float weight = scores[h * kScoreStride + r];
          acc[h][0] = fmaf(weight, value.x, acc[h][0]);
          acc[h][1] = fmaf(weight, value.y, acc[h][1]);
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h0 + h >= p.n_heads) break;
    const std::int64_t row = t * p.n_heads + h0 + h;
    const float sum = denominator(running[h], p.sinks[h0 + h]);
    if (column < p.width) p.o[row * p.width + column] = __fdiv_rn(acc[h][0], sum);
    if (column + 1 < p.width) p.o[row * p.width + column + 1] = __fdiv_rn(acc[h][1], sum);
    if (thread == 0 && p.log_sum_exp != nullptr) {
      p.log_sum_exp[row] = running[h].peak + logf(sum);
    }
  }
}

}  // namespace

void attend_f32(Stream& stream, const Params<float>& params, std::int64_t n_tokens) {
  const int floats = (kHeads + kTile) * stride_of(params.width) + kHeads * kScoreStride;
  launch(stream, "sparse_attention", attend_kernel,
         {dim3(static_cast<unsigned>(n_tokens), blocks_for(params.n_heads, kHeads)), dim3(kThreads),
          floats * 4},
         params);
}

}  // namespace hadal::kernels::cuda::attention
