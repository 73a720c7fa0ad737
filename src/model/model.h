#pragma once

#include <functional>
#include <vector>

#include "model/mtp.h"

namespace hadal::model {

// A DeepSeek-V4 model: weights bound to layers. Immutable; any number of contexts may run it.
// Source: DeepSeek-V4 §2; architecture.md §0.3.
class Model {
 public:
  // Shares the weights' mapping. The config is the one that `weights` were bound with.
  Model(Config config, const BoundWeights& weights);

  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] std::int64_t n_mtp() const { return static_cast<std::int64_t>(mtp_.size()); }

  // Called with the streams [n_tokens, hc_mult, hidden] after each main layer.
  using LayerObserver = std::function<void(std::int64_t layer, const Tensor& streams)>;

  // All layers over the batch; histories in `kv` grow by it.
  //   return  [n_tokens, hc_mult, hidden], the streams after the last layer
  [[nodiscard]] Tensor forward(ExecContext& ctx, const TokenBatch& batch, KvState& kv,
                               const LayerObserver& observer = nullptr,
                               const StepOptions& options = {}) const;

  // Next-token logits of some rows of forward's result: [rows.size(), vocab_size] f32.
  [[nodiscard]] Tensor logits(ExecContext& ctx, const Tensor& streams,
                              std::span<const std::int64_t> rows) const;
  // hc_head and the final norm: [n_tokens, hidden].
  [[nodiscard]] Tensor collapse(ExecContext& ctx, const Tensor& streams) const;

  // MTP block `depth` over the batch: row t has token t's position and `next_ids[t]`, the token
  // after it. Returns the block's streams.
  [[nodiscard]] Tensor mtp_forward(ExecContext& ctx, std::int64_t depth, const TokenBatch& batch,
                                   KvState& kv, const Tensor& streams,
                                   std::span<const TokenId> next_ids,
                                   const StepOptions& options = {}) const;
  // The block's own hc_head and norm: [n_tokens, hidden], for the shared head.
  [[nodiscard]] Tensor mtp_collapse(ExecContext& ctx, std::int64_t depth,
                                    const Tensor& streams) const;
  [[nodiscard]] Tensor mtp_logits(ExecContext& ctx, std::int64_t depth, const Tensor& streams,
                                  std::span<const std::int64_t> rows) const;

  // The head that turns collapsed rows into logits, for a loss that never holds them all.
  [[nodiscard]] const QuantTensor& head() const { return head_; }  // [vocab, hidden]

  // For looking at one layer: what forward prepares, and its pieces.
  [[nodiscard]] Step make_step(ExecContext& ctx, const TokenBatch& batch, KvState& kv,
                               const StepOptions& options = {}) const;
  [[nodiscard]] Tensor embed(ExecContext& ctx, const Step& step) const;
  [[nodiscard]] const Block& layer(std::int64_t i) const {
    return layers_[static_cast<std::size_t>(i)];
  }

 private:
  std::size_t rope_index(const RopeSpec& spec);  // adds the table kind when it is new

  Config config_;
  std::vector<RopeSpec> rope_specs_;
  std::vector<ops::RopeFrequencies> rope_frequencies_;
  Tensor embed_;      // [vocab, hidden]
  QuantTensor head_;  // [vocab, hidden]
  Tensor norm_;       // [hidden] f32
  std::vector<Block> layers_;
  std::vector<MtpBlock> mtp_;
  std::vector<HyperConnection> hc_head_;  // one
};

}  // namespace hadal::model
