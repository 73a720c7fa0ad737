#include "kernels/elementwise.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

void add_to_streams(Stream& stream, const AddToStreamsArgs& a) {
  const std::int64_t n = a.streams.dim(1), hidden = a.streams.dim(2);
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.y.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* x = a.x.data<const T>() + t * hidden;
        for (std::int64_t j = 0; j < n; ++j) {
          const T* s = a.streams.data<const T>() + (t * n + j) * hidden;
          T* y = a.y.data<T>() + (t * n + j) * hidden;
          for (std::int64_t i = 0; i < hidden; ++i) put(y[i], load(s[i]) + load(x[i]));
        }
      }
    });
  });
}

void scale(Stream& stream, const ScaleArgs& a) {
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.y.numel(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        put(a.y.data<T>()[i], load(a.x.data<const T>()[i]) * a.factor);
      }
    });
  });
}

void copy(Stream&, const CopyArgs& a) {
  std::memcpy(a.y.bytes(), a.x.bytes(), a.y.nbytes());
}

namespace {
HADAL_SIMD_CLONES void add_range(float* y, const float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}
}  // namespace

void sum_streams(Stream& stream, const SumStreamsArgs& a) {
  const std::int64_t n = a.y.dim(1), hidden = a.y.dim(2);
  stream.pool().parallel_for(a.y.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* y = a.y.data<const float>() + t * n * hidden;
      float* x = a.x.data<float>() + t * hidden;
      std::copy_n(y, hidden, x);
      for (std::int64_t j = 1; j < n; ++j) add_range(x, y + j * hidden, hidden);
    }
  });
}

void add_in_place(Stream& stream, const AddInPlaceArgs& a) {
  auto* y = a.y.data<float>();
  const auto* x = a.x.data<const float>();
  stream.pool().parallel_for(a.y.numel(), 1 << 15, [&](std::int64_t begin, std::int64_t end) {
    add_range(y + begin, x + begin, end - begin);
  });
}

}  // namespace hadal::kernels::cpu
