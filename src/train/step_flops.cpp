#include "train/step_flops.h"

#include <limits>

#include "model/accounting.h"

namespace hadal::train {

StepFlops::StepFlops(const model::Config& config, AttentionPhase phase, bool with_mtp)
    : config_(config), with_mtp_(with_mtp) {
  if (phase != AttentionPhase::sparse) {  // every entry is seen, and no indexer runs
    config_.index_n_heads = config_.index_head_dim = 0;
    config_.index_topk = std::numeric_limits<std::int64_t>::max();
  }
  if (with_mtp_) {
    config_.num_hidden_layers += 1;
    const auto d = static_cast<double>(config_.hidden_size);
    const auto streams = static_cast<double>(config_.hc_mult);
    // Both projections, the streams' collapse and the head once more.
    mtp_extra_ = 2.0 * ((1.0 + streams) * d * d + streams * static_cast<double>(config_.hc_dim()) +
                        static_cast<double>(config_.vocab_size) * d);
  }
}

double StepFlops::of_sequence(std::int64_t n_tokens) {
  while (std::ssize(sums_) <= n_tokens) {
    sums_.push_back(sums_.back() + mtp_extra_ +
                    model::token_flops(config_, std::ssize(sums_)).plain());
  }
  return 3.0 * sums_[static_cast<std::size_t>(n_tokens)];
}

std::optional<double> published_peak(const cuda::DeviceInfo& gpu, Compute compute) {
  constexpr double kFlopsPerClock = 4096,
                   kClock = 1.83e9;  // of a multiprocessor; 989 TFLOP/s of 132
  if (compute == Compute::f32 || gpu.major != cuda::kWantedMajor) return std::nullopt;
  return gpu.n_multiprocessors * kFlopsPerClock * kClock;
}

}  // namespace hadal::train
