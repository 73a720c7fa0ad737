// A checkpoint under test: loaded once, run with any split of a prompt.
#pragma once

#include <numeric>

#include "cache/paged_kv.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "support/context.h"
#include "support/golden.h"

namespace hadal::test {

struct LoadedModel {
  explicit LoadedModel(const std::string& directory)
      : config(model::load_config(directory)),
        weights(model::BoundWeights::bind(io::Checkpoint::open(directory), config)),
        model(config, weights) {}
  model::Config config;
  model::BoundWeights weights;
  model::Model model;
};

inline std::vector<TokenId> ids_of(const TensorView& t, std::int64_t row = 0) {
  const std::int64_t n = t.shape().rank() == 1 ? t.dim(0) : t.dim(1);
  const auto* p = t.data<const std::int32_t>() + row * n;
  return {p, p + n};
}

// One sequence on its own cache.
class SequenceRun {
 public:
  SequenceRun(const LoadedModel& loaded, Numerics numerics, std::int64_t rollback_tokens = 0)
      : loaded_(loaded),
        t_(numerics),
        kv_(loaded.config, {.numerics = numerics, .rollback_tokens = rollback_tokens}),
        slot_(kv_.open()) {}

  // Streams of these tokens, appended at `position()`.
  Tensor forward(std::span<const TokenId> ids, const model::Model::LayerObserver& observer = {}) {
    model::TokenBatch batch;
    batch.add(ids, position_, slot_);
    position_ += static_cast<std::int64_t>(ids.size());
    return loaded_.model.forward(t_.ctx, batch, kv_, observer);
  }
  // Logits of every token, row after row.
  std::vector<float> logits(std::span<const TokenId> ids) {
    const Tensor streams = forward(ids);
    std::vector<std::int64_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    return values(loaded_.model.logits(t_.ctx, streams, rows));
  }
  std::vector<float> last_logits(std::span<const TokenId> ids) {
    const std::int64_t last[] = {static_cast<std::int64_t>(ids.size()) - 1};
    return values(loaded_.model.logits(t_.ctx, forward(ids), last));
  }
  void rewind(std::int64_t position) { position_ = position; }
  [[nodiscard]] std::int64_t position() const { return position_; }
  [[nodiscard]] ExecContext& ctx() { return t_.ctx; }
  [[nodiscard]] cache::PagedKv& kv() { return kv_; }
  [[nodiscard]] std::int64_t slot() const { return slot_; }

 private:
  const LoadedModel& loaded_;
  TestContext t_;
  cache::PagedKv kv_;
  std::int64_t slot_;
  std::int64_t position_ = 0;
};

}  // namespace hadal::test
