#include "train/loss.h"

#include <algorithm>

#include "ops/cross_entropy.h"

namespace hadal::train {

namespace {

Tensor target_tensor(ExecContext& ctx, std::span<const TokenId> targets) {
  Tensor t = ctx.host_empty({std::ssize(targets)}, DType::i32);
  std::transform(targets.begin(), targets.end(), t.data<std::int32_t>(),
                 [](TokenId id) { return static_cast<std::int32_t>(id); });
  return t;
}

double sum(const Tensor& loss) {
  double total = 0;
  for (std::int64_t t = 0; t < loss.numel(); ++t) total += loss.data<const float>()[t];
  return total;
}

std::int64_t count(std::span<const TokenId> targets) {
  return std::count_if(targets.begin(), targets.end(), [](TokenId id) { return id >= 0; });
}

}  // namespace

LossSums& LossSums::operator+=(const LossSums& other) {
  main += other.main, mtp += other.mtp;
  n_targets += other.n_targets, n_mtp_targets += other.n_mtp_targets;
  return *this;
}

std::vector<TokenId> mtp_targets(const MicroBatch& batch) {
  std::vector<TokenId> out(batch.targets.size(), -1);
  for (const model::TokenBatch::Sequence& s : batch.tokens.sequences) {
    for (std::int64_t t = s.begin; t + 1 < s.end; ++t) {
      out[static_cast<std::size_t>(t)] = batch.targets[static_cast<std::size_t>(t + 1)];
    }
  }
  return out;
}

LossSums run_losses(ExecContext& ctx, const model::Model& model, const MicroBatch& batch,
                    model::KvState& kv, const LossOptions& options) {
  LossSums sums;
  const Tensor streams = model.forward(ctx, batch.tokens, kv, nullptr, options.step);
  if (!options.main_loss) return sums;
  const Tensor x = recompute(ctx, model.collapse(ctx, streams));
  const Tensor main =
      ops::cross_entropy(ctx, x, model.head(), target_tensor(ctx, batch.targets), options.scale);
  sums.n_targets = count(batch.targets);
  if (options.mtp_scale <= 0 || model.n_mtp() == 0) {
    sums.main = sum(ctx.to_host(main));
    return sums;
  }

  // Row t sees the embedding of token t + 1; the last row of a sequence has none and no target
  // either, and being last, nobody sees it.
  std::vector<TokenId> next(batch.tokens.token_ids.begin(), batch.tokens.token_ids.end());
  std::rotate(next.begin(), next.begin() + 1, next.end());
  const std::vector<TokenId> targets = mtp_targets(batch);
  const Tensor ahead = model.mtp_forward(ctx, 0, batch.tokens, kv, streams, next, options.step);
  const Tensor y = recompute(ctx, model.mtp_collapse(ctx, 0, ahead));
  const Tensor mtp =
      ops::cross_entropy(ctx, y, model.head(), target_tensor(ctx, targets), options.mtp_scale);
  sums.n_mtp_targets = count(targets);
  const std::vector<Tensor> host = ctx.to_host(std::vector<Tensor>{main, mtp});
  sums.main = sum(host[0]), sums.mtp = sum(host[1]);
  return sums;
}

}  // namespace hadal::train
