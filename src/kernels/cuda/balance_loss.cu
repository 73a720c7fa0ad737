// Four kernels: the sum of scores of every token, a warp each; shares and counts of experts over
// ranges of a fixed number of tokens, a block each; those of a sequence, ranges in their order, and
// its loss; the gradient, a warp a token. Counts are integers, so their order does not matter.
#include <algorithm>
#include <vector>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/device/router_score.cuh"
#include "kernels/moe.h"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Tokens whose sums are made together. Sequences are cut by their own length alone.
constexpr std::int64_t kRange = 128;

struct Range {
  std::int64_t begin, end;
  std::int32_t sequence;
};
struct Sequence {
  std::int64_t first_range, n_ranges, length;
};

__global__ void __launch_bounds__(kThreads)
    score_sums_kernel(float* sums, const float* logits, std::int64_t n_tokens, int n_experts) {
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (token >= n_tokens) return;
  float sum = 0.0f;
  for (int e = lane; e < n_experts; e += 32) sum += sqrt_softplus(logits[token * n_experts + e]);
  sum = warp_sum(sum);
  if (lane == 0) sums[token] = sum;
}

// shares [range, expert]: of the scores, tokens ascending; counts: how often it was chosen.
__global__ void __launch_bounds__(kThreads)
    ranges_kernel(float* shares, std::int32_t* counts, const Range* ranges, const float* sums,
                  const float* logits, const std::int32_t* experts, int n_experts, int topk) {
  extern __shared__ std::int32_t count[];
  const Range range = ranges[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < n_experts; e += kThreads) count[e] = 0;
  __syncthreads();
  for (std::int64_t i = range.begin * topk + thread; i < range.end * topk; i += kThreads) {
    atomicAdd(count + experts[i], 1);
  }
  for (int e = thread; e < n_experts; e += kThreads) {
    float share = 0.0f;
#pragma unroll 4
    for (std::int64_t t = range.begin; t < range.end; ++t) {
      share += sqrt_softplus(logits[t * n_experts + e]) / sums[t];
    }
    shares[std::int64_t{blockIdx.x} * n_experts + e] = share;
  }
  __syncthreads();
  for (int e = thread; e < n_experts; e += kThreads) {
    counts[std::int64_t{blockIdx.x} * n_experts + e] = count[e];
  }
}

// loads [sequence, expert]: f of the loss.
__global__ void __launch_bounds__(kThreads)
    sequences_kernel(float* losses, float* loads, const Sequence* sequences, const float* shares,
                     const std::int32_t* counts, int n_experts, int topk) {
  __shared__ double shared[kWarps];
  const Sequence s = sequences[blockIdx.x];
  const auto length = static_cast<double>(s.length > 1 ? s.length : 1);
  double loss = 0;
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) {
    double share = 0;
    std::int64_t count = 0;
#pragma unroll 4
    for (std::int64_t r = s.first_range; r < s.first_range + s.n_ranges; ++r) {
      share += static_cast<double>(shares[r * n_experts + e]);
      count += counts[r * n_experts + e];
    }
    const double load =
        static_cast<double>(count * n_experts) / (static_cast<double>(topk) * length);
    loads[std::int64_t{blockIdx.x} * n_experts + e] = static_cast<float>(load);
    loss += load * share / length;
  }
  loss = block_sum<kThreads>(loss, shared);
  if (threadIdx.x == 0) losses[blockIdx.x] = static_cast<float>(loss);
}

// blockIdx: a range; its warps take tokens in turn.
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(float* dlogits, const Range* ranges, const Sequence* sequences,
                    const float* loads, const float* sums, const float* logits, int n_experts,
                    float coefficient) {
  const Range range = ranges[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const load = loads + std::int64_t{range.sequence} * n_experts;
  const auto length = static_cast<float>(sequences[range.sequence].length);
  for (std::int64_t t = range.begin + threadIdx.x / 32; t < range.end; t += kWarps) {
    const float* const from = logits + t * n_experts;
    float mean = 0.0f;
    for (int e = lane; e < n_experts; e += 32) mean = fmaf(load[e], sqrt_softplus(from[e]), mean);
    mean = warp_sum(mean) / sums[t];
    const float factor = coefficient / (length * sums[t]);
    for (int e = lane; e < n_experts; e += 32) {
      const float slope = sqrt_softplus_slope(from[e], sqrt_softplus(from[e]));
      dlogits[t * n_experts + e] = factor * (load[e] - mean) * slope;
    }
  }
}

}  // namespace

void balance_loss(Stream& stream, const BalanceLossArgs& a) {
  const std::int64_t n_tokens = a.logits.dim(0), n_experts = a.logits.dim(1);
  const std::int64_t topk = a.experts.dim(1);
  if (a.bounds.size() < 2) return;
  std::vector<Range> ranges;
  std::vector<Sequence> sequences;
  for (std::size_t s = 0; s + 1 < a.bounds.size(); ++s) {
    const std::int64_t begin = a.bounds[s], end = a.bounds[s + 1];
    sequences.push_back(
        {static_cast<std::int64_t>(ranges.size()), ceil_div(end - begin, kRange), end - begin});
    for (std::int64_t t = begin; t < end; t += kRange) {
      ranges.push_back({t, std::min(t + kRange, end), static_cast<std::int32_t>(s)});
    }
  }
  const auto n_ranges = static_cast<std::int64_t>(ranges.size());
  const auto n_sequences = static_cast<std::int64_t>(sequences.size());
  const auto* const range_table = stream.cuda().stage(std::span<const Range>(ranges));
  const auto* const sequence_table = stream.cuda().stage(std::span<const Sequence>(sequences));
  const Tensor scratch =
      stream.cuda().scratch((n_tokens + (2 * n_ranges + n_sequences) * n_experts) * 4);
  auto* const sums = reinterpret_cast<float*>(scratch.bytes());
  float *const shares = sums + n_tokens, *const loads = shares + n_ranges * n_experts;
  auto* const counts = reinterpret_cast<std::int32_t*>(loads + n_sequences * n_experts);
  const auto* const logits = data<const float>(a.logits);
  const int experts = static_cast<int>(n_experts), k = static_cast<int>(topk);

  launch(stream, "balance_loss", score_sums_kernel,
         {dim3(blocks_for(n_tokens, kWarps)), dim3(kThreads)}, sums, logits, n_tokens, experts);
  launch(stream, "balance_loss", ranges_kernel,
         {dim3(blocks_for(n_ranges, 1)), dim3(kThreads), static_cast<int>(n_experts * 4)}, shares,
         counts, range_table, sums, logits, data<const std::int32_t>(a.experts), experts, k);
  launch(stream, "balance_loss", sequences_kernel,
         {dim3(blocks_for(n_sequences, 1)), dim3(kThreads)}, data<float>(a.loss), loads,
         sequence_table, shares, counts, experts, k);
  if (!a.dlogits) return;
  launch(stream, "balance_loss", gradient_kernel, {dim3(blocks_for(n_ranges, 1)), dim3(kThreads)},
         data<float>(a.dlogits), range_table, sequence_table, loads, sums, logits, experts,
         a.coefficient);
}

}  // namespace hadal::kernels::cuda
