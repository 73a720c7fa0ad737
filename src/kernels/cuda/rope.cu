// One thread for 16 bytes of a head's rotated columns where they allow it, for a pair elsewhere.
// Products and sums are rounded one by one, as on the CPU: the same bits.
#include "kernels/rope.h"

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;

template <class T, int kN, bool kVector>
__global__ void rope_kernel(T* x, const float* table, std::int64_t n_groups, int groups_per_head,
                            int n_heads, int width, int n_pairs, float sign) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n_groups) return;
  const std::int64_t head = i / groups_per_head, token = head / n_heads;
  const int at = static_cast<int>(i - head * groups_per_head) * kN, n = 2 * n_pairs;
  T* const row = x + (head + 1) * width - n;
  float v[kN], cos_sin[kN];
  load_group<kVector>(v, row, at, n);
  load_group<kVector>(cos_sin, table + token * n, at, n);
#pragma unroll
  for (int p = 0; p < kN; p += 2) {
    const float c = cos_sin[p], s = sign * cos_sin[p + 1], even = v[p], odd = v[p + 1];
    v[p] = __fsub_rn(__fmul_rn(even, c), __fmul_rn(odd, s));
    v[p + 1] = __fadd_rn(__fmul_rn(even, s), __fmul_rn(odd, c));
  }
  put_group<kVector>(row, at, n, v);
}

__global__ void rope_table_kernel(float2* table, const std::int64_t* positions,
                                  const float* frequencies, std::int64_t n, int n_pairs) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const std::int64_t token = i / n_pairs;
  const double angle = static_cast<double>(
      __fmul_rn(static_cast<float>(positions[token]), frequencies[i - token * n_pairs]));
  table[i] = make_float2(static_cast<float>(cos(angle)), static_cast<float>(sin(angle)));
}

}  // namespace

void rope_table(Stream& stream, const RopeTableArgs& a) {
  const std::int64_t n = a.table.numel() / 2;
  launch(stream, "rope_table", rope_table_kernel, {dim3(blocks_for(n, kThreads)), dim3(kThreads)},
         reinterpret_cast<float2*>(data<float>(a.table)), data<const std::int64_t>(a.positions),
         data<const float>(a.frequencies), n, static_cast<int>(a.frequencies.dim(0)));
}

void rope(Stream& stream, const RopeArgs& a) {
  const std::int64_t n_heads = a.x.dim(0) * a.x.dim(1), width = a.x.dim(2);
  const std::int64_t n_pairs = a.table.dim(1);
  const float sign = a.direction == RopeDirection::inverse ? -1.0f : 1.0f;
  dispatch_activation(a.x.dtype(), [&]<class T>() {
    const auto run = [&]<int kN, bool kVector>() {
      const std::int64_t per_head = 2 * n_pairs / kN, n = n_heads * per_head;
      launch(stream, "rope", rope_kernel<T, kN, kVector>,
             {dim3(blocks_for(n, kThreads)), dim3(kThreads)}, data<T>(a.x),
             data<const float>(a.table), n, static_cast<int>(per_head),
             static_cast<int>(a.x.dim(1)), static_cast<int>(width), static_cast<int>(n_pairs),
             sign);
    };
    const bool vector = width % kGroup<T> == 0 && in_groups(2 * n_pairs, kGroup<T>, a.x, a.table);
    if (vector) {
      run.template operator()<kGroup<T>, true>();
    } else {
      run.template operator()<2, false>();
    }
  });
}

}  // namespace hadal::kernels::cuda
