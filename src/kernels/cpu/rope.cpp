#include "kernels/rope.h"

#include <cmath>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

void rope_table(Stream& stream, const RopeTableArgs& a) {
  const std::int64_t n_pairs = a.frequencies.dim(0);
  const auto* positions = a.positions.data<const std::int64_t>();
  const auto* frequencies = a.frequencies.data<const float>();
  stream.pool().parallel_for(a.positions.dim(0), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* out = a.table.data<float>() + t * n_pairs * 2;
      for (std::int64_t i = 0; i < n_pairs; ++i) {
        const double angle = static_cast<float>(positions[t]) * frequencies[i];
        out[2 * i] = static_cast<float>(std::cos(angle));
        out[2 * i + 1] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void rope(Stream& stream, const RopeArgs& a) {
  const std::int64_t n_heads = a.x.dim(1), width = a.x.dim(2), n_pairs = a.table.dim(1);
  const float sign = a.direction == RopeDirection::inverse ? -1.0f : 1.0f;
  const auto* table = a.table.data<const float>();
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.x.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const float* cos_sin = table + t * n_pairs * 2;
        for (std::int64_t h = 0; h < n_heads; ++h) {
          T* y = a.x.data<T>() + (t * n_heads + h + 1) * width - 2 * n_pairs;
          for (std::int64_t i = 0; i < n_pairs; ++i) {
            const float c = cos_sin[2 * i], s = sign * cos_sin[2 * i + 1];
            const float even = load(y[2 * i]), odd = load(y[2 * i + 1]);
            put(y[2 * i], even * c - odd * s);
            put(y[2 * i + 1], even * s + odd * c);
          }
        }
      }
    });
  });
}

}  // namespace hadal::kernels::cpu
