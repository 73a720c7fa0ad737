#include <algorithm>
#include <vector>

#include "kernels/cpu/router_score.h"
#include "kernels/moe.h"

namespace hadal::kernels::cpu {

namespace {
// Tokens whose sums are made together. Sequences are cut by their own length alone.
constexpr std::int64_t kRange = 128;
struct Range {
  std::size_t sequence;
  std::int64_t begin, end;
};
}  // namespace

void balance_loss(Stream& stream, const BalanceLossArgs& a) {
  const std::int64_t n_experts = a.logits.dim(1), topk = a.experts.dim(1);
  const auto experts = static_cast<std::size_t>(n_experts);
  std::vector<Range> ranges;
  for (std::size_t s = 0; s + 1 < a.bounds.size(); ++s) {
    for (std::int64_t t = a.bounds[s]; t < a.bounds[s + 1]; t += kRange) {
      ranges.push_back({s, t, std::min(t + kRange, a.bounds[s + 1])});
    }
  }
  const auto n_ranges = static_cast<std::int64_t>(ranges.size());
  // Of each range, then added up: how often an expert was chosen, and its share of the scores.
  std::vector<std::int64_t> range_counts(ranges.size() * experts);
  std::vector<float> range_shares(ranges.size() * experts);
  stream.pool().parallel_for(n_ranges, 1, [&](std::int64_t r0, std::int64_t r1) {
    std::vector<float> scores(experts);
    for (std::int64_t r = r0; r < r1; ++r) {
      std::int64_t* counts = range_counts.data() + r * n_experts;
      float* shares = range_shares.data() + r * n_experts;
      const Range& range = ranges[static_cast<std::size_t>(r)];
      for (std::int64_t t = range.begin; t < range.end; ++t) {
        const float* logits = a.logits.data<const float>() + t * n_experts;
        float sum = 0.0f;
        for (std::size_t e = 0; e < experts; ++e) sum += scores[e] = sqrt_softplus(logits[e]);
        for (std::size_t e = 0; e < experts; ++e) shares[e] += scores[e] / sum;
        const auto* chosen = a.experts.data<const std::int32_t>() + t * topk;
        for (std::int64_t k = 0; k < topk; ++k) ++counts[chosen[k]];
      }
    }
  });

  const std::size_t n_sequences = a.bounds.size() - 1;
  std::vector<std::int64_t> counts(n_sequences * experts);
  std::vector<double> shares(n_sequences * experts);
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    const std::size_t to = ranges[r].sequence * experts;
    for (std::size_t e = 0; e < experts; ++e) {
      counts[to + e] += range_counts[r * experts + e];
      shares[to + e] += static_cast<double>(range_shares[r * experts + e]);
    }
  }
  std::vector<float> loads(n_sequences * experts);  // f
  for (std::size_t s = 0; s < n_sequences; ++s) {
    const auto length =
        static_cast<double>(std::max<std::int64_t>(1, a.bounds[s + 1] - a.bounds[s]));
    double loss = 0;
    for (std::size_t e = s * experts; e < (s + 1) * experts; ++e) {
      const double load =
          static_cast<double>(counts[e] * n_experts) / (static_cast<double>(topk) * length);
      loads[e] = static_cast<float>(load);
      loss += load * shares[e] / length;
    }
    a.loss.data<float>()[s] = static_cast<float>(loss);
  }
  if (!a.dlogits) return;

  stream.pool().parallel_for(n_ranges, 1, [&](std::int64_t r0, std::int64_t r1) {
    std::vector<float> scores(experts);
    for (std::int64_t r = r0; r < r1; ++r) {
      const Range& range = ranges[static_cast<std::size_t>(r)];
      const float* load = loads.data() + range.sequence * experts;
      const auto length =
          static_cast<float>(a.bounds[range.sequence + 1] - a.bounds[range.sequence]);
      for (std::int64_t t = range.begin; t < range.end; ++t) {
        const float* logits = a.logits.data<const float>() + t * n_experts;
        float* dlogits = a.dlogits.data<float>() + t * n_experts;
        float sum = 0.0f, mean = 0.0f;
        for (std::size_t e = 0; e < experts; ++e) {
          sum += scores[e] = sqrt_softplus(logits[e]);
          mean += load[e] * scores[e];
        }
        mean /= sum;
        const float factor = a.coefficient / (length * sum);
        for (std::size_t e = 0; e < experts; ++e) {
          dlogits[e] = factor * (load[e] - mean) * sqrt_softplus_slope(logits[e], scores[e]);
        }
      }
    }
  });
}

}  // namespace hadal::kernels::cpu
