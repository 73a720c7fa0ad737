// One thread for 16 bytes where rows allow it; memory is all that these wait for.
#include "kernels/elementwise.h"

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;

Grid grid_for(std::int64_t n) {
  return {dim3(blocks_for(n, kThreads)), dim3(kThreads)};
}
__device__ __forceinline__ std::int64_t this_thread() {
  return std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

// A thread has a group of columns of one stream.
template <class T, bool kVector>
__global__ void add_to_streams_kernel(T* y, const T* streams, const T* x, std::int64_t n_groups,
                                      int row_groups, int n_streams, int hidden) {
  constexpr int kN = kGroup<T>;
  const std::int64_t i = this_thread();
  if (i >= n_groups) return;
  const std::int64_t row = i / row_groups, token = row / n_streams;
  const int at = static_cast<int>(i - row * row_groups) * kN;
  float sum[kN], v[kN];
  load_group<kVector>(sum, streams + row * hidden, at, hidden);
  load_group<kVector>(v, x + token * hidden, at, hidden);
#pragma unroll
  for (int c = 0; c < kN; ++c) sum[c] += v[c];
  put_group<kVector>(y + row * hidden, at, hidden, sum);
}

template <class T, bool kVector>
__global__ void scale_kernel(T* y, const T* x, std::int64_t n, float factor) {
  constexpr int kN = kGroup<T>;
  const std::int64_t at = this_thread() * kN;
  if (at >= n) return;
  float v[kN];
  load_group<kVector>(v, x, at, n);
#pragma unroll
  for (int c = 0; c < kN; ++c) v[c] *= factor;
  put_group<kVector>(y, at, n, v);
}

template <bool kVector>
__global__ void add_in_place_kernel(float* y, const float* x, std::int64_t n) {
  constexpr int kN = kGroup<float>;
  const std::int64_t at = this_thread() * kN;
  if (at >= n) return;
  float sum[kN], v[kN];
  load_group<kVector>(sum, y, at, n);
  load_group<kVector>(v, x, at, n);
#pragma unroll
  for (int c = 0; c < kN; ++c) sum[c] += v[c];
  put_group<kVector>(y, at, n, sum);
}

template <bool kVector>
__global__ void sum_streams_kernel(float* x, const float* y, std::int64_t n_groups, int row_groups,
                                   int n_streams, int hidden) {
  constexpr int kN = kGroup<float>;
  const std::int64_t i = this_thread();
  if (i >= n_groups) return;
  const std::int64_t token = i / row_groups;
  const int at = static_cast<int>(i - token * row_groups) * kN;
  const float* const from = y + token * n_streams * hidden;
  float sum[kN], v[kN];
  load_group<kVector>(sum, from, at, hidden);
  for (int j = 1; j < n_streams; ++j) {
    load_group<kVector>(v, from + std::int64_t{j} * hidden, at, hidden);
#pragma unroll
    for (int c = 0; c < kN; ++c) sum[c] += v[c];
  }
  put_group<kVector>(x + token * hidden, at, hidden, sum);
}

}  // namespace

void add_to_streams(Stream& stream, const AddToStreamsArgs& a) {
  const std::int64_t n_streams = a.y.dim(1), hidden = a.y.dim(2);
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    const std::int64_t row_groups = ceil_div(hidden, kGroup<T>);
    const std::int64_t n = a.y.dim(0) * n_streams * row_groups;
    dispatch_bool(in_groups(hidden, kGroup<T>, a.y, a.streams, a.x), [&]<bool kVector>() {
      launch(stream, "add_to_streams", add_to_streams_kernel<T, kVector>, grid_for(n), data<T>(a.y),
             data<const T>(a.streams), data<const T>(a.x), n, static_cast<int>(row_groups),
             static_cast<int>(n_streams), static_cast<int>(hidden));
    });
  });
}

void scale(Stream& stream, const ScaleArgs& a) {
  const std::int64_t n = a.y.numel();
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    dispatch_bool(in_groups(n, kGroup<T>, a.y, a.x), [&]<bool kVector>() {
      launch(stream, "scale", scale_kernel<T, kVector>, grid_for(ceil_div(n, kGroup<T>)),
             data<T>(a.y), data<const T>(a.x), n, a.factor);
    });
  });
}

void copy(Stream& stream, const CopyArgs& a) {
  stream.copy(a.x, a.y);
}

void add_in_place(Stream& stream, const AddInPlaceArgs& a) {
  const std::int64_t n = a.y.numel();
  dispatch_bool(in_groups(n, kGroup<float>, a.y, a.x), [&]<bool kVector>() {
    launch(stream, "add_in_place", add_in_place_kernel<kVector>,
           grid_for(ceil_div(n, kGroup<float>)), data<float>(a.y), data<const float>(a.x), n);
  });
}

void sum_streams(Stream& stream, const SumStreamsArgs& a) {
  const std::int64_t n_streams = a.y.dim(1), hidden = a.y.dim(2);
  const std::int64_t row_groups = ceil_div(hidden, kGroup<float>), n = a.x.dim(0) * row_groups;
  dispatch_bool(in_groups(hidden, kGroup<float>, a.x, a.y), [&]<bool kVector>() {
    launch(stream, "sum_streams", sum_streams_kernel<kVector>, grid_for(n), data<float>(a.x),
           data<const float>(a.y), n, static_cast<int>(row_groups), static_cast<int>(n_streams),
           static_cast<int>(hidden));
  });
}

}  // namespace hadal::kernels::cuda
