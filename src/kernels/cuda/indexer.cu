// The two roundings of the indexer's queries. hadamard: a warp for a row, whose values stay in
// registers; the butterflies of neighbouring values are a lane's own, the wider ones a shuffle. The
// additions are those of the CPU, so the bits are. fake_quantize_fp4: four (bf16) or eight (f32)
// lanes for a block of 32 columns, 16 bytes each.
#include "kernels/indexer.h"

#include <cmath>

#include "core/error.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / 32;

// Rows of 32 * kPerLane values; lane l has [l * kPerLane, (l + 1) * kPerLane).
template <class T, int kPerLane>
__global__ void __launch_bounds__(kThreads)
    hadamard_kernel(T* x, std::int64_t n_rows, float factor) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (row >= n_rows) return;
  T* p = x + (row * 32 + lane) * kPerLane;
  float v[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) v[i] = load(p[i]);
#pragma unroll
  for (int half = 1; half < kPerLane; half *= 2) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if ((i & half) != 0) continue;
      const float a = v[i], b = v[i + half];
      v[i] = a + b;
      v[i + half] = a - b;
    }
  }
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, v[i], distance);
      v[i] = upper ? other - v[i] : v[i] + other;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) put(p[i], v[i] * factor);
}

// Rows of fewer than 32 values: one thread each.
template <class T>
__global__ void __launch_bounds__(kThreads)
    hadamard_short_kernel(T* x, std::int64_t n_rows, int width, float factor) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= n_rows) return;
  T* p = x + row * width;
  float v[16];
  for (int i = 0; i < width; ++i) v[i] = load(p[i]);
  for (int half = 1; half < width; half *= 2) {
    for (int i = 0; i < width; ++i) {
      if ((i & half) != 0) continue;
      const float a = v[i], b = v[i + half];
      v[i] = a + b;
      v[i + half] = a - b;
    }
  }
  for (int i = 0; i < width; ++i) put(p[i], v[i] * factor);
}

template <class T, int kPerLane>
void launch_hadamard(Stream& stream, const TensorView& x, float factor) {
  launch(stream, "hadamard", hadamard_kernel<T, kPerLane>,
         {dim3(blocks_for(x.dim(0), kRowsPerBlock)), dim3(kThreads)}, data<T>(x), x.dim(0), factor);
}

template <class T>
__global__ void __launch_bounds__(kThreads) fake_quantize_kernel(T* x, std::int64_t n_blocks) {
  constexpr int kPerLane = 16 / static_cast<int>(sizeof(T)), kLanes = 32 / kPerLane;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool exists = i / kLanes < n_blocks;  // the shuffles want every lane
  T v[kPerLane];
  uint4* p = reinterpret_cast<uint4*>(x) + i;
  *reinterpret_cast<uint4*>(v) = exists ? *p : uint4{};
  float amax = 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) amax = fmaxf(amax, fabsf(load(v[j])));
#pragma unroll
  for (int lane = 1; lane < kLanes; lane *= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, lane));
  }
  const float scale = exp2_int(e2m1_scale_exponent(amax)), inverse = 1.0f / scale;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const float value = load(v[j]);
    put(v[j], copysignf(round_e2m1_magnitude(fabsf(value) * inverse) * scale, value));
  }
  if (exists) *p = *reinterpret_cast<const uint4*>(v);
}

}  // namespace

void hadamard(Stream& stream, const HadamardArgs& a) {
  const std::int64_t n = a.x.dim(1);
  if (a.x.numel() == 0) return;
  const float factor = 1.0f / std::sqrt(static_cast<float>(n));
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    switch (n) {
      case 1:
      case 2:
      case 4:
      case 8:
      case 16:
        return launch(stream, "hadamard", hadamard_short_kernel<T>,
                      {dim3(blocks_for(a.x.dim(0), kThreads)), dim3(kThreads)}, data<T>(a.x),
                      a.x.dim(0), static_cast<int>(n), factor);
      case 32:
        return launch_hadamard<T, 1>(stream, a.x, factor);
      case 64:
        return launch_hadamard<T, 2>(stream, a.x, factor);
      case 128:
        return launch_hadamard<T, 4>(stream, a.x, factor);
      case 256:
        return launch_hadamard<T, 8>(stream, a.x, factor);
      case 512:
        return launch_hadamard<T, 16>(stream, a.x, factor);
      case 1024:
        return launch_hadamard<T, 32>(stream, a.x, factor);
      default:
        throw Error(ErrorCode::unsupported,
                    "hadamard on a GPU takes rows of a power of two of at most 1,024 values; use "
                    "the cpu device for wider ones");
    }
  });
}

void fake_quantize_fp4(Stream& stream, const FakeQuantizeFp4Args& a) {
  const std::int64_t n_blocks = a.x.numel() / 32;
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    constexpr int kLanes = 2 * sizeof(T);
    launch(stream, "fake_quantize_fp4", fake_quantize_kernel<T>,
           {dim3(blocks_for(n_blocks * kLanes, kThreads)), dim3(kThreads)}, data<T>(a.x), n_blocks);
  });
}

}  // namespace hadal::kernels::cuda
