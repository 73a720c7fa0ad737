// The gates of hyper-connections from mixes that carry the RMS factor, by one warp: hc_split of
// kernels/cpu. All lanes take part.  Source: architecture.md §3.1.
#pragma once

namespace hadal::kernels::cuda {

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}
// mix * scale + base, rounded twice as on the CPU.
__device__ __forceinline__ float hc_logit(const float* mixes, const float* scale, const float* base,
                                          int gate, int m) {
  return __fadd_rn(__fmul_rn(mixes[m], scale[gate]), base[m]);
}

__device__ __forceinline__ void hc_pre_gates(const float* mixes, const float* scale,
                                             const float* base, int n, float eps, float* pre) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < n) pre[lane] = sigmoid(hc_logit(mixes, scale, base, 0, lane)) + eps;
}
__device__ __forceinline__ void hc_post_gates(const float* mixes, const float* scale,
                                              const float* base, int n, float* post) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < n) post[lane] = 2.0f * sigmoid(hc_logit(mixes, scale, base, 1, n + lane));
}

// comb [4, 4] with an element a lane: a row is four neighbours, a column every fourth lane. Both
// halves of the warp compute the same. A quotient is a product with the rounded reciprocal: one
// rounding more than on the CPU, which the next normalisation takes out again.
__device__ __forceinline__ void hc_comb_of_four(const float* mixes, const float* scale,
                                                const float* base, int sinkhorn_iters, float eps,
                                                float* comb) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto line_sum = [](float x, int step) {
    x += __shfl_xor_sync(kAll, x, step);
    return x + __shfl_xor_sync(kAll, x, 2 * step);
  };
  const float logit = hc_logit(mixes, scale, base, 2, 8 + lane % 16);
  float peak = fmaxf(logit, __shfl_xor_sync(kAll, logit, 1));
  peak = fmaxf(peak, __shfl_xor_sync(kAll, peak, 2));
  float m = expf(logit - peak);
  m = m / line_sum(m, 1) + eps;
  m *= __frcp_rn(line_sum(m, 4) + eps);
  for (int iteration = 1; iteration < sinkhorn_iters; ++iteration) {
    m *= __frcp_rn(line_sum(m, 1) + eps);
    m *= __frcp_rn(line_sum(m, 4) + eps);
  }
  if (lane < 16) comb[lane] = m;
}

// comb [n, n], n <= 32, with a line a lane; `m` is shared memory for it.
__device__ __forceinline__ void hc_comb(const float* mixes, const float* scale, const float* base,
                                        int n, int sinkhorn_iters, float eps, float* m,
                                        float* comb) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Elements of the lane's line are `step` apart, from `first` on.
  const auto normalise = [&](int first, int step) {
    if (lane < n) {
      float sum = 0.0f;
      for (int i = 0; i < n; ++i) sum += m[first + i * step];
      for (int i = 0; i < n; ++i) m[first + i * step] /= sum + eps;
    }
    __syncwarp();
  };
  if (lane < n) {
    float* const row = m + lane * n;
    float peak = -INFINITY, sum = 0.0f;
    for (int k = 0; k < n; ++k) {
      row[k] = hc_logit(mixes, scale, base, 2, 2 * n + lane * n + k);
      peak = fmaxf(peak, row[k]);
    }
    for (int k = 0; k < n; ++k) sum += row[k] = expf(row[k] - peak);
    for (int k = 0; k < n; ++k) row[k] = row[k] / sum + eps;
  }
  __syncwarp();
  normalise(lane, n);
  for (int iteration = 1; iteration < sinkhorn_iters; ++iteration) {
    normalise(lane * n, 1);
    normalise(lane, n);
  }
  for (int i = lane; i < n * n; i += 32) comb[i] = m[i];
}

}  // namespace hadal::kernels::cuda
