#include "kernels/elementwise.h"

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

}  // namespace hadal::kernels::cpu
