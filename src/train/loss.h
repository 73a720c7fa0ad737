// The losses of one micro-batch and, with a tape, their gradients.
#pragma once

#include "model/in_batch_kv.h"
#include "model/model.h"
#include "train/data_loader.h"

namespace hadal::train {

struct LossOptions {
  // What the gradient of a token's loss is multiplied with: 1 / targets of the whole batch, so that
  // micro-batches and ranks add up to the mean.
  float scale = 1.0f;
  float mtp_scale = 0.0f;  // the same for the MTP loss, its weight included; 0: no MTP
  bool main_loss = true;   // false in the indexer's warm-up: no head, no loss of the trunk
  model::StepOptions step{};
};

// Sums over tokens, natural log, unscaled.
struct LossSums {
  double main = 0, mtp = 0;
  std::int64_t n_targets = 0, n_mtp_targets = 0;

  LossSums& operator+=(const LossSums& other);
  [[nodiscard]] double main_mean() const { return n_targets > 0 ? main / double(n_targets) : 0; }
  [[nodiscard]] double mtp_mean() const {
    return n_mtp_targets > 0 ? mtp / double(n_mtp_targets) : 0;
  }
};

// Targets of the MTP block: at row t the token after t's target, where it is in the same sequence.
//   return  by row of `batch.tokens`, -1 where there is none
[[nodiscard]] std::vector<TokenId> mtp_targets(const MicroBatch& batch);

// Runs the model over the batch. With a tape on `ctx`, the losses are recorded: Tape::backward adds
// the gradients. `kv` must have been made for this batch and outlive backward.
[[nodiscard]] LossSums run_losses(ExecContext& ctx, const model::Model& model,
                                  const MicroBatch& batch, model::KvState& kv,
                                  const LossOptions& options);

}  // namespace hadal::train
