// What a trainer learns from, and adds to, the forward passes of one optimizer step.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "model/step.h"

namespace hadal::train {

// Expert choices of one micro-batch, by layer (MTP blocks behind the main layers): [n_tokens, topk]
// i32, empty where experts follow from the token ids.
using ExpertChoices = std::vector<Tensor>;

struct WatchOptions {
  // Per sequence: weight over the number of sequences of the whole batch. 0: no balance loss.
  float balance_scale = 0;
  // Per query with a visible entry: weight over their number in the whole batch. 0: no indexer
  // loss.
  float indexer_scale = 0;
  bool measure_recall = true;   // with the indexer's loss: what its selection would catch
  bool record_choices = false;  // keep the experts that were chosen
};

// What it learns stays on the device until somebody asks: layers wait for nothing.
class StepWatch final : public model::StepObserver {
 public:
  // `ctx`: where the passes run; its stream and memory must outlive this.
  StepWatch(const model::Config& config, WatchOptions options, const ExecContext& ctx);

  // Before every micro-batch. `bounds`: rows where its sequences begin, and the end. `forced`: the
  // experts to use, or null; must live until the backward pass is over.
  void begin(std::vector<std::int64_t> bounds, const ExpertChoices* forced);

  [[nodiscard]] Tensor forced_experts(std::int64_t layer) override;
  void routed(ExecContext& ctx, std::int64_t layer, const Tensor& logits,
              const ops::Routing& routing) override;
  [[nodiscard]] bool wants_index_scores(std::int64_t layer) override;
  void indexed(ExecContext& ctx, std::int64_t layer,
               const ops::IndexedAttention& attention) override;
  [[nodiscard]] ClampCounts* clamp_counts(std::int64_t layer) override;

  // Waits for the passes since the last time, and adds what they said to layers(). After every
  // micro-batch that counts.
  void settle();

  // Summed over the micro-batches since construction, as far as settled.
  struct Layer {
    std::vector<std::int64_t> load;  // tokens by expert
    double balance_loss = 0;         // over sequences
    std::int64_t n_sequences = 0;
    ops::IndexLoss index_loss;
    ClampCounts clamps;
  };
  [[nodiscard]] const std::vector<Layer>& layers() const { return layers_; }
  [[nodiscard]] std::vector<Layer>& layers() { return layers_; }
  // Of the micro-batch begun last; with record_choices.
  [[nodiscard]] ExpertChoices take_choices();

 private:
  const model::Config& config_;
  WatchOptions options_;
  std::vector<std::int64_t> bounds_;
  const ExpertChoices* forced_ = nullptr;
  ExpertChoices choices_;
  std::vector<Layer> layers_;

  ExecContext ctx_;
  // Since construction. [n_layers, n_experts] and a ClampCounts a layer; i64
  Tensor load_, clamps_;
  struct Pending {  // of one layer and pass
    std::size_t layer;
    Tensor balance_loss;
    ops::IndexLossRows index_loss;
  };
  std::vector<Pending> pending_;
};

}  // namespace hadal::train
