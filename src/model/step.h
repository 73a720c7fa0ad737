#pragma once

#include <vector>

#include "model/kv_state.h"
#include "model/token_batch.h"
#include "ops/exec_context.h"
#include "ops/index_loss.h"
#include "ops/moe.h"

namespace hadal::model {

// What a CSA layer attends to beyond its window: the entries that its indexer selects, as
// published, or all of them, as before sparsity is switched on.  Source: training.md §2.3.
enum class CsaSelection : std::uint8_t { indexer, all };

// Told what a forward pass decides, layer by layer, and asked for decisions to use instead. Serving
// has none; training counts loads, adds losses and replays routings through it.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // Experts to use instead of the router's own choice, [n_tokens, topk] i32; empty: its choice.
  // The weights still come from the scores.
  [[nodiscard]] virtual Tensor forced_experts(std::int64_t layer) = 0;
  // logits [n_tokens, n_experts] f32, before any softmax.
  virtual void routed(ExecContext& ctx, std::int64_t layer, const Tensor& logits,
                      const ops::Routing& routing) = 0;
  // Where, in memory of the device, to add up what this layer's clamps of SwiGLU cut off; null:
  // nobody counts.
  [[nodiscard]] virtual ClampCounts* clamp_counts(std::int64_t /*layer*/) { return nullptr; }
  // Whether this layer's indexer is to be scored against its attention (it then runs even where
  // everything is attended) ...
  [[nodiscard]] virtual bool wants_index_scores(std::int64_t layer) = 0;
  // ... and both sides, once they are known.
  virtual void indexed(ExecContext& ctx, std::int64_t layer,
                       const ops::IndexedAttention& attention) = 0;
};

// What a caller may want of a forward pass besides its result.
struct StepOptions {
  CsaSelection csa_selection = CsaSelection::indexer;
  StepObserver* observer = nullptr;  // must outlive the pass
};

// What every layer of one forward pass shares.
struct Step {
  const TokenBatch& batch;
  KvState& kv;
  Tensor token_ids;                 // [n_tokens] i32
  std::vector<Tensor> rope_tables;  // one per kind of rotation in the model, [n_tokens, pairs, 2]
  CsaSelection csa_selection = CsaSelection::indexer;
  StepObserver* observer = nullptr;
};

}  // namespace hadal::model
