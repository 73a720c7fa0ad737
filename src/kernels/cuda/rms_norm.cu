// A warp a row where rows are short (heads), a block a row where they are long. Which of the two it
// is, and so the order of the sum, follows from the row's length alone.  The second reading of a
// row comes from the first-level cache.
#include "kernels/rms_norm.h"

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kBlock = 256;
constexpr std::int64_t kLongestForWarp = 1024;

// The row of this thread, its place in the group of kThreads that work on it, and their sum.
template <int kThreads>
struct RowGroup {
  static constexpr int kRows = kBlock / kThreads;  // of a block
  static __device__ __forceinline__ std::int64_t row() {
    return std::int64_t{blockIdx.x} * kRows + threadIdx.x / kThreads;
  }
  static __device__ __forceinline__ int thread() { return threadIdx.x % kThreads; }
  static __device__ __forceinline__ float sum(float x, float* shared) {
    if constexpr (kThreads == 32)
      return warp_sum(x);
    else
      return block_sum<kThreads>(x, shared);
  }
};

template <class T, int kThreads, bool kVector>
__global__ void __launch_bounds__(kBlock)
    rms_norm_kernel(T* y, const T* x, const float* weight, std::int64_t n_rows, int n, float eps) {
  constexpr int kN = kGroup<T>;
  using Group = RowGroup<kThreads>;
  __shared__ float shared[kBlock / 32];
  const std::int64_t row = Group::row();
  if (row >= n_rows) return;  // a whole warp; where a block is a row there is none beyond the end
  const T* from = x + row * n;
  T* to = y + row * n;
  float squares = 0.0f, v[kN];
#pragma unroll 4
  for (int at = Group::thread() * kN; at < n; at += kThreads * kN) {
    load_group<kVector>(v, from, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) squares = fmaf(v[i], v[i], squares);
  }
  const float sum = Group::sum(squares, shared);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
#pragma unroll 4
  for (int at = Group::thread() * kN; at < n; at += kThreads * kN) {
    float w[kN];
    load_group<kVector>(v, from, at, n);
    load_group<kVector>(w, weight, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) v[i] = w[i] * (v[i] * scale);
    put_group<kVector>(to, at, n, v);
  }
}

// rounded<T> is the identity for f32: the reference's five roundings and the plain formula.
template <class T, int kThreads, bool kVector>
__global__ void __launch_bounds__(kBlock)
    head_norm_kernel(T* x, std::int64_t n_rows, int n, float eps) {
  constexpr int kN = kGroup<T>;
  using Group = RowGroup<kThreads>;
  __shared__ float shared[kBlock / 32];
  const std::int64_t row = Group::row();
  if (row >= n_rows) return;
  T* const at_row = x + row * n;
  float squares = 0.0f, v[kN];
#pragma unroll 4
  for (int at = Group::thread() * kN; at < n; at += kThreads * kN) {
    load_group<kVector>(v, at_row, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      squares = __fadd_rn(squares, rounded<T>(__fmul_rn(v[i], v[i])));
    }
  }
  const float sum = Group::sum(squares, shared);
  const float mean = rounded<T>(sum / static_cast<float>(n));
  const float scale = rounded<T>(1.0f / sqrtf(rounded<T>(mean + eps)));
#pragma unroll 4
  for (int at = Group::thread() * kN; at < n; at += kThreads * kN) {
    load_group<kVector>(v, at_row, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) v[i] *= scale;
    put_group<kVector>(at_row, at, n, v);
  }
}

// fn<kThreads>(grid) for rows of n.
template <class Fn>
void dispatch_rows(std::int64_t n_rows, std::int64_t n, Fn&& fn) {
  if (n <= kLongestForWarp) {
    fn.template operator()<32>(Grid{dim3(blocks_for(n_rows, kBlock / 32)), dim3(kBlock)});
  } else {
    fn.template operator()<kBlock>(Grid{dim3(blocks_for(n_rows, 1)), dim3(kBlock)});
  }
}

}  // namespace

void rms_norm(Stream& stream, const RmsNormArgs& a) {
  const std::int64_t n_rows = a.x.dim(0), n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    dispatch_bool(in_groups(n, kGroup<T>, a.y, a.x, a.weight), [&]<bool kVector>() {
      dispatch_rows(n_rows, n, [&]<int kThreads>(const Grid& grid) {
        launch(stream, "rms_norm", rms_norm_kernel<T, kThreads, kVector>, grid, data<T>(a.y),
               data<const T>(a.x), data<const float>(a.weight), n_rows, static_cast<int>(n), a.eps);
      });
    });
  });
}

void head_norm(Stream& stream, const HeadNormArgs& a) {
  const std::int64_t n_rows = a.x.dim(0), n = a.x.dim(1);
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    dispatch_bool(in_groups(n, kGroup<T>, a.x), [&]<bool kVector>() {
      dispatch_rows(n_rows, n, [&]<int kThreads>(const Grid& grid) {
        launch(stream, "head_norm", head_norm_kernel<T, kThreads, kVector>, grid, data<T>(a.x),
               n_rows, static_cast<int>(n), a.eps);
      });
    });
  });
}

}  // namespace hadal::kernels::cuda
