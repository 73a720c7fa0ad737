// Tokens are sorted by id, keeping their order; then a block has the columns of one row of the
// table, and adds the tokens that chose it one by one. The first of a run does the work, the blocks
// of the others have none.
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/embed.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 128;

__global__ void count_up_kernel(std::int32_t* x, int n) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < n) x[i] = i;
}

// ids and tokens: sorted. blockIdx: a sorted token, columns.
template <bool kVector>
__global__ void add_runs_kernel(float* dtable, const float* dy, const std::int32_t* ids,
                                const std::int32_t* tokens, int n_tokens, int n_streams,
                                int hidden) {
  constexpr int kN = 4;
  const int first = static_cast<int>(blockIdx.x);
  const int at = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kN;
  const std::int32_t id = ids[first];
  if (at >= hidden || (first > 0 && ids[first - 1] == id)) return;
  float* const row = dtable + std::int64_t{id} * hidden;
  float sum[kN], x[kN];
  load_group<kVector>(sum, row, at, hidden);
  for (int i = first; i < n_tokens && ids[i] == id; ++i) {
    const float* from = dy + std::int64_t{tokens[i]} * n_streams * hidden;
#pragma unroll 4
    for (int j = 0; j < n_streams; ++j) {
      load_group<kVector>(x, from + std::int64_t{j} * hidden, at, hidden);
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += x[c];
    }
  }
  put_group<kVector>(row, at, hidden, sum);
}

void check(cudaError_t result) {
  if (result != cudaSuccess) throw Error(ErrorCode::device, cudaGetErrorString(result));
}

}  // namespace

void embed_backward(Stream& stream, const EmbedBackwardArgs& a) {
  const std::int64_t n = a.dy.dim(0), n_streams = a.dy.dim(1), hidden = a.dy.dim(2);
  if (n == 0) return;
  const auto* ids = data<const std::int32_t>(a.ids);
  const Tensor scratch = stream.cuda().scratch(3 * n * 4);
  auto* const sorted_ids = reinterpret_cast<std::int32_t*>(scratch.bytes());
  std::int32_t *const positions = sorted_ids + n, *const tokens = positions + n;
  const int count = static_cast<int>(n);
  launch(stream, "embed_backward", count_up_kernel, {dim3(blocks_for(n, kThreads)), dim3(kThreads)},
         positions, count);
  int id_bits = 1;
  while (id_bits < 31 && (std::int64_t{1} << id_bits) < a.dtable.dim(0)) ++id_bits;
  const auto sort = [&](void* temporary, std::size_t& bytes) {
    check(cub::DeviceRadixSort::SortPairs(temporary, bytes, ids, sorted_ids, positions, tokens,
                                          count, 0, id_bits,
                                          static_cast<cudaStream_t>(stream.cuda().stream())));
  };
  std::size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor temporary = stream.cuda().scratch(static_cast<std::int64_t>(bytes));
  sort(temporary.bytes(), bytes);
  dispatch_bool(in_groups(hidden, 4, a.dtable, a.dy), [&]<bool kVector>() {
    launch(stream, "embed_backward", add_runs_kernel<kVector>,
           {dim3(blocks_for(n, 1), blocks_for(hidden, kThreads * 4)), dim3(kThreads)},
           data<float>(a.dtable), data<const float>(a.dy), sorted_ids, tokens, count,
           static_cast<int>(n_streams), static_cast<int>(hidden));
  });
}

}  // namespace hadal::kernels::cuda
