// Looking at a model in training without changing it.
#include <algorithm>

#include "model/in_batch_kv.h"
#include "train/trainer_parts.h"

namespace hadal::train {

std::optional<EvalRecord> Trainer::evaluate() {
  if (!data_.has_split(kValidationSplit) || config_.eval_tokens == 0) return std::nullopt;
  synchronise();
  const StepPlan plan = plan_step(config_.schedule, progress_);
  DataLoader loader(data_.split(kValidationSplit),
                    {.shuffle = false,
                     .alignment = config_.alignment,
                     .max_epochs = 1,
                     .pad_token = std::max<TokenId>(data_.manifest().pad_token, 0)});
  ExecContext ctx = context();
  LossSums sums;
  const std::int64_t rows = std::max<std::int64_t>(
      1, (config_.micro_batch_tokens == 0 ? plan.batch_tokens : config_.micro_batch_tokens) /
             plan.sequence_length);
  std::int64_t n_batches = 0;
  for (std::int64_t seen = 0; seen < config_.eval_tokens; ++n_batches) {
    const Batch batch = loader.next(
        {.sequence_length = plan.sequence_length, .batch_tokens = rows * plan.sequence_length});
    if (batch.samples.empty()) break;
    seen += batch.n_inputs;
    if (n_batches % ranks_.size() != ranks_.rank()) continue;  // another rank's
    const MicroBatch micro = loader.load(batch.samples);
    model::InBatchKv kv(config_.model, numerics(), allocator_);
    sums += run_losses(
        ctx, *model_, micro, kv,
        {.mtp_scale = model_->n_mtp() > 0 ? 1.0f : 0.0f, .step = step_options(plan, nullptr)});
  }
  exchange_.sum(sums);
  EvalRecord record;
  record.step = n_steps();
  record.tokens = progress_.tokens;
  record.time = unix_time();
  record.loss = sums.main_mean();
  record.eval_tokens = sums.n_targets;
  return record;
}

std::vector<TokenId> Trainer::continue_greedily(std::vector<TokenId> prompt, std::int64_t n) {
  synchronise();
  const StepPlan plan = plan_step(config_.schedule, progress_);
  const auto n_prompt = std::ssize(prompt);
  ExecContext ctx = context();
  for (std::int64_t i = 0; i < n; ++i) {
    if (std::ssize(prompt) >= config_.model.max_position_embeddings) break;
    // The whole text again for every token: short texts, and no cache that serving has.
    model::TokenBatch batch;
    batch.add(prompt, 0, 0);
    model::InBatchKv kv(config_.model, numerics(), allocator_);
    const Tensor streams = model_->forward(ctx, batch, kv, nullptr, step_options(plan, nullptr));
    const std::vector<std::int64_t> rows{batch.n_tokens() - 1};
    const Tensor logits = ctx.to_host(model_->logits(ctx, streams, rows));
    const auto* z = logits.data<const float>();
    const auto best = static_cast<TokenId>(std::max_element(z, z + logits.numel()) - z);
    const auto& eos = config_.model.eos_token_id;
    if (std::find(eos.begin(), eos.end(), std::int64_t{best}) != eos.end()) break;
    prompt.push_back(best);
  }
  return {prompt.begin() + n_prompt, prompt.end()};
}

}  // namespace hadal::train
