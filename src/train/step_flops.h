// What a training step costs, from the model alone.
#pragma once

#include <optional>
#include <vector>

#include "core/cuda/queue.h"
#include "train/run_config.h"
#include "train/schedule.h"

namespace hadal::train {

// Floating point operations of forward and backward passes: three times those of inference
// (model::token_flops), since backward makes two products of each. Attention counts the keys that a
// query sees. What recomputation repeats is no product (docs/adr/0009), and is not counted; nor are
// the indexer's loss and the optimizer.
class StepFlops {
 public:
  // Of a phase in which the model is trained: dense or sparse.
  StepFlops(const model::Config& config, AttentionPhase phase, bool with_mtp);

  [[nodiscard]] double of_sequence(std::int64_t n_tokens);  // from position 0
  [[nodiscard]] bool with_mtp() const { return with_mtp_; }

 private:
  model::Config config_;  // the model as this phase runs it, the MTP block as one more layer
  double mtp_extra_ = 0;  // a token's, besides that layer
  bool with_mtp_;
  std::vector<double> sums_{0.0};  // forward, of the first n tokens
};

// Operations a second that the GPU is published to reach with these numbers: dense bf16 products at
// the clock of the SXM boards. Nothing for f32, which has kernels of several kinds.
[[nodiscard]] std::optional<double> published_peak(const cuda::DeviceInfo& gpu, Compute compute);

}  // namespace hadal::train
