#include "kernels/embed.h"

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

void embed(Stream& stream, const EmbedArgs& a) {
  const std::int64_t n_streams = a.y.dim(1), hidden = a.y.dim(2);
  const auto* ids = a.ids.data<const std::int32_t>();
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    dispatch_activation(a.table.dtype(), [&]<class W>() {
      stream.pool().parallel_for(a.y.dim(0), 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
          const W* row = a.table.data<const W>() + ids[t] * hidden;
          T* y = a.y.data<T>() + t * n_streams * hidden;
          for (std::int64_t j = 0; j < n_streams; ++j) {
            for (std::int64_t i = 0; i < hidden; ++i) put(y[j * hidden + i], load(row[i]));
          }
        }
      });
    });
  });
}

namespace {
HADAL_SIMD_CLONES void add_columns(float* to, const float* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}
}  // namespace

void embed_backward(Stream& stream, const EmbedBackwardArgs& a) {
  const std::int64_t n = a.dy.dim(1), hidden = a.dy.dim(2), n_tokens = a.dy.dim(0);
  const auto* ids = a.ids.data<const std::int32_t>();
  // A range of columns a thread, all tokens in order: rows may repeat, and their order is fixed.
  stream.pool().parallel_for(hidden, 32, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      float* row = a.dtable.data<float>() + ids[t] * hidden + begin;
      const float* dy = a.dy.data<const float>() + t * n * hidden + begin;
      for (std::int64_t j = 0; j < n; ++j) add_columns(row, dy + j * hidden, end - begin);
    }
  });
}

}  // namespace hadal::kernels::cpu
