// One thread for 16 bytes where rows allow it; memory is all that these wait for.
#include "kernels/elementwise.h"

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;

Grid grid_for(std::int64_t n) {
  return {dim3(blocks_for(n, kThreads)), dim3(kThreads)};
}

template <class T>
__global__ void add_to_streams_kernel(T* y, const T* streams, const T* x, std::int64_t n,
                                      int n_streams, int hidden) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const std::int64_t row = i / hidden, token = row / n_streams;
  put(y[i], load(streams[i]) + load(x[token * hidden + i % hidden]));
}

template <class T>
__global__ void scale_kernel(T* y, const T* x, std::int64_t n, float factor) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) put(y[i], load(x[i]) * factor);
}

__global__ void add_in_place_kernel(float* y, const float* x, std::int64_t n) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) y[i] += x[i];
}

__global__ void sum_streams_kernel(float* x, const float* y, std::int64_t n, int n_streams,
                                   int hidden) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const float* from = y + i / hidden * n_streams * hidden + i % hidden;
  float sum = 0.0f;
  for (int j = 0; j < n_streams; ++j) sum += from[std::int64_t{j} * hidden];
  x[i] = sum;
}

}  // namespace

void add_to_streams(Stream& stream, const AddToStreamsArgs& a) {
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    launch(stream, "add_to_streams", add_to_streams_kernel<T>, grid_for(a.y.numel()), data<T>(a.y),
           data<const T>(a.streams), data<const T>(a.x), a.y.numel(), static_cast<int>(a.y.dim(1)),
           static_cast<int>(a.y.dim(2)));
  });
}

void scale(Stream& stream, const ScaleArgs& a) {
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    launch(stream, "scale", scale_kernel<T>, grid_for(a.y.numel()), data<T>(a.y),
           data<const T>(a.x), a.y.numel(), a.factor);
  });
}

void copy(Stream& stream, const CopyArgs& a) {
  stream.copy(a.x, a.y);
}

void add_in_place(Stream& stream, const AddInPlaceArgs& a) {
  launch(stream, "add_in_place", add_in_place_kernel, grid_for(a.y.numel()), data<float>(a.y),
         data<const float>(a.x), a.y.numel());
}

void sum_streams(Stream& stream, const SumStreamsArgs& a) {
  launch(stream, "sum_streams", sum_streams_kernel, grid_for(a.x.numel()), data<float>(a.x),
         data<const float>(a.y), a.x.numel(), static_cast<int>(a.y.dim(1)),
         static_cast<int>(a.y.dim(2)));
}

}  // namespace hadal::kernels::cuda
