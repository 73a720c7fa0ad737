// One block a token: its row of the table is read once and written to every stream.
#include "kernels/embed.h"

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;

template <class T, class W, bool kVector>
__global__ void embed_kernel(T* y, const std::int32_t* ids, const W* table, int n_streams,
                             int hidden) {
  constexpr int kN = kGroup<T>;
  const std::int64_t token = blockIdx.x;
  const W* row = table + std::int64_t{ids[token]} * hidden;
  T* const to = y + token * n_streams * hidden;
  for (int at = static_cast<int>(threadIdx.x) * kN; at < hidden; at += kThreads * kN) {
    float x[kN];
    load_group<kVector>(x, row, at, hidden);
    for (int j = 0; j < n_streams; ++j) {
      put_group<kVector>(to + std::int64_t{j} * hidden, at, hidden, x);
    }
  }
}

}  // namespace

void embed(Stream& stream, const EmbedArgs& a) {
  const std::int64_t n_streams = a.y.dim(1), hidden = a.y.dim(2);
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    dispatch_activation(a.table.dtype(), [&]<class W>() {
      dispatch_bool(in_groups(hidden, kGroup<T>, a.y, a.table), [&]<bool kVector>() {
        launch(stream, "embed", embed_kernel<T, W, kVector>,
               {dim3(blocks_for(a.y.dim(0), 1)), dim3(kThreads)}, data<T>(a.y),
               data<const std::int32_t>(a.ids), data<const W>(a.table), static_cast<int>(n_streams),
               static_cast<int>(hidden));
      });
    });
  });
}

}  // namespace hadal::kernels::cuda
