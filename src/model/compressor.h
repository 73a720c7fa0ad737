#pragma once

#include <algorithm>

#include "model/config.h"
#include "model/step.h"
#include "model/weight_layout.h"
#include "ops/rope.h"

namespace hadal::model {

// Turns every `ratio` tokens into one KV entry: projections, a softmax pool per channel, a norm,
// and a rotation by the position of the window's first token. CSA layers overlap windows; the
// indexer has one of its own.  Source: DeepSeek-V4 §2.3.1-2; architecture.md §3.5.
class Compressor {
 public:
  // `prefix` names the weights: "layers.2.attn.compressor".
  Compressor(const Config& config, const LayerSpec& layer, const BoundWeights& weights,
             const std::string& prefix, const ops::RopeFrequencies& rope);

  [[nodiscard]] std::int64_t ratio() const { return ratio_; }

  // New entries of one sequence: rows [row, row + count) of `entries`, numbered from `first`.
  struct NewEntries {
    std::int64_t row, count, first;
    // Without those below number `entry`.
    [[nodiscard]] NewEntries from(std::int64_t entry) const {
      const std::int64_t skip = std::clamp<std::int64_t>(entry - first, 0, count);
      return {row + skip, count - skip, first + skip};
    }
    [[nodiscard]] StepEntries rows() const { return {row, count, first}; }
  };
  struct Output {
    Tensor entries;  // [n_entries, width], rotated
    std::vector<NewEntries> by_sequence;
  };
  // x [n_tokens, hidden]; tails, one per sequence of the batch, are updated.
  [[nodiscard]] Output forward(ExecContext& ctx, const Step& step, const Tensor& x,
                               std::span<const CompressorTail> tails) const;

 private:
  QuantTensor kv_proj_, gate_proj_;  // [q*width, hidden]
  Tensor norm_;                      // [width] f32
  Tensor position_bias_;             // [ratio, q*width] f32
  std::int64_t ratio_;
  bool overlap_;
  float norm_eps_;
  ops::RopeFrequencies rope_;
};

}  // namespace hadal::model
