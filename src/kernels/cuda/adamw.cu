// A block a chunk of 16,384 elements of any of the parameters, all in one launch. Every operation
// is rounded by itself, as on the CPU: the same bits.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cuda/device/chunks.cuh"
#include "kernels/cuda/device/pack.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kChunk = 16384;

struct Item {
  float *weight, *mean, *variance;
  const float* gradient;
  std::int64_t n, first_chunk;
  float keep;  // what decay leaves of the weight
  bool in_groups;
};

struct Factors {
  float beta1, new1, beta2, new2;  // new = 1 - beta
  float mean_scale, variance_scale;
  float eps, lr, gradient_scale;
};

template <bool kVector>
__device__ __forceinline__ double update(const Item& item, std::int64_t begin, std::int64_t n,
                                         const Factors& f) {
  constexpr int kN = 4;
  double sum = 0;
#pragma unroll 2
  for (std::int64_t at = std::int64_t{threadIdx.x} * kN; at < n; at += kThreads * kN) {
    float w[kN], g[kN], m[kN], v[kN];
    load_group<kVector>(w, item.weight + begin, at, n);
    load_group<kVector>(g, item.gradient + begin, at, n);
    load_group<kVector>(m, item.mean + begin, at, n);
    load_group<kVector>(v, item.variance + begin, at, n);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float gradient = __fmul_rn(g[i], f.gradient_scale);
      m[i] = __fadd_rn(__fmul_rn(f.beta1, m[i]), __fmul_rn(f.new1, gradient));
      v[i] = __fadd_rn(__fmul_rn(f.beta2, v[i]), __fmul_rn(f.new2, __fmul_rn(gradient, gradient)));
      const float root = __fadd_rn(__fsqrt_rn(__fmul_rn(v[i], f.variance_scale)), f.eps);
      const float step = v[i] == 0.0f ? 0.0f : __fdiv_rn(__fmul_rn(m[i], f.mean_scale), root);
      w[i] = __fsub_rn(__fmul_rn(w[i], item.keep), __fmul_rn(f.lr, step));
      sum = fma(static_cast<double>(step), static_cast<double>(step), sum);
    }
    put_group<kVector>(item.weight + begin, at, n, w);
    put_group<kVector>(item.mean + begin, at, n, m);
    put_group<kVector>(item.variance + begin, at, n, v);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(double* parts, const Item* items, int n_items, const Factors f) {
  __shared__ double shared[kThreads / 32];
  const Item item = items[item_of(items, n_items, blockIdx.x)];
  const std::int64_t begin = (std::int64_t{blockIdx.x} - item.first_chunk) * kChunk;
  const std::int64_t n = min(kChunk, item.n - begin);
  double sum = item.in_groups ? update<true>(item, begin, n, f) : update<false>(item, begin, n, f);
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

}  // namespace

void adamw(Stream& stream, const AdamwArgs& a) {
  HADAL_CHECK(a.parameters.size() == a.sums.size() && a.step >= 1);
  if (a.parameters.empty()) return;
  const auto t = static_cast<double>(a.step);
  Factors f{};
  f.beta1 = static_cast<float>(a.beta1), f.new1 = static_cast<float>(1.0 - a.beta1);
  f.beta2 = static_cast<float>(a.beta2), f.new2 = static_cast<float>(1.0 - a.beta2);
  f.mean_scale = static_cast<float>(1.0 / (1.0 - std::pow(a.beta1, t)));
  f.variance_scale = static_cast<float>(1.0 / (1.0 - std::pow(a.beta2, t)));
  f.eps = static_cast<float>(a.eps), f.lr = static_cast<float>(a.lr);
  f.gradient_scale = a.gradient_scale;

  std::vector<Item> items;
  std::vector<std::int64_t> first{0};
  for (const AdamwParameter& p : a.parameters) {
    HADAL_CHECK(p.gradient.shape() == p.weight.shape() && p.mean.shape() == p.weight.shape() &&
                p.variance.shape() == p.weight.shape());
    const std::int64_t n = p.weight.numel();
    items.push_back({.weight = data<float>(p.weight),
                     .mean = data<float>(p.mean),
                     .variance = data<float>(p.variance),
                     .gradient = data<const float>(p.gradient),
                     .n = n,
                     .first_chunk = first.back(),
                     .keep = static_cast<float>(1.0 - a.lr * p.weight_decay),
                     .in_groups = in_groups(n, 4, p.weight, p.gradient, p.mean, p.variance)});
    first.push_back(first.back() + ceil_div(n, kChunk));
  }
  const Tensor scratch =
      stream.cuda().scratch((first.back() + static_cast<std::int64_t>(items.size())) * 8);
  launch(stream, "adamw", adamw_kernel, {dim3(blocks_for(first.back(), 1)), dim3(kThreads)},
         reinterpret_cast<double*>(scratch.bytes()),
         stream.cuda().stage(std::span<const Item>(items)), static_cast<int>(items.size()), f);
  download_sums(stream, scratch, first, a.sums);
}

}  // namespace hadal::kernels::cuda
