// What a step works on: batches cut into micro-batches, and the experts that are chosen ahead.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "model/in_batch_kv.h"
#include "train/trainer_parts.h"

namespace hadal::train {

namespace {

// Queries that may see an entry of some CSA layer.
std::int64_t n_indexer_rows(const model::Config& config, const model::TokenBatch& tokens) {
  if (!config.has_csa()) return 0;
  std::int64_t n = 0;
  for (const model::TokenBatch::Sequence& s : tokens.sequences) {
    n += ops::rows_with_entries(s.end - s.begin, model::kCsaRatio);
  }
  return n;
}

}  // namespace

// Where this rank's micro-batches begin in its samples, and the end. With divided experts all ranks
// have as many, since each waits for tokens of the others.
std::vector<std::int64_t> Trainer::micro_batch_bounds(const Batch& batch,
                                                      std::int64_t n_own) const {
  const std::int64_t n = std::ssize(batch.samples), n_ranks = ranks_.size();
  const std::int64_t rows =
      config_.micro_batch_tokens == 0
          ? std::max<std::int64_t>(n, 1)
          : std::max<std::int64_t>(1, config_.micro_batch_tokens / batch.sequence_length);
  std::vector<std::int64_t> bounds;
  if (!exchange_.divides_experts() || n_ranks == 1) {
    for (std::int64_t i = 0; i < n_own; i += rows) bounds.push_back(i);
    bounds.push_back(n_own);
    return bounds;
  }
  if (n < n_ranks) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("train.expert_parallel: a batch of {} sequences for {} processes; "
                            "wanted at least one each. Raise batch.tokens or start fewer",
                            n, n_ranks));
  }
  const std::int64_t most = (n + n_ranks - 1) / n_ranks, fewest = n / n_ranks;
  const std::int64_t n_micro = std::min((most + rows - 1) / rows, fewest);
  for (std::int64_t i = 0; i <= n_micro; ++i) bounds.push_back(n_own * i / n_micro);
  return bounds;
}

Trainer::Prepared Trainer::fetch(const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  Prepared out;
  out.before = loader_.state();
  const Batch batch =
      loader_.next({.sequence_length = plan.sequence_length, .batch_tokens = plan.batch_tokens});
  const std::span<const Sample> samples = batch.part({.index = ranks_.rank(), .n = ranks_.size()});
  const std::vector<std::int64_t> bounds = micro_batch_bounds(batch, std::ssize(samples));
  std::array<std::int64_t, 5> counts{};
  auto& [n_targets, n_mtp_targets, n_sequences, n_index_rows, n_tokens] = counts;
  for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
    MicroBatch micro = loader_.load(samples.subspan(
        static_cast<std::size_t>(bounds[i]), static_cast<std::size_t>(bounds[i + 1] - bounds[i])));
    const std::vector<TokenId> ahead = mtp_targets(micro);
    n_targets += micro.n_targets;
    n_mtp_targets += std::count_if(ahead.begin(), ahead.end(), [](TokenId t) { return t >= 0; });
    n_sequences += std::ssize(micro.tokens.sequences);
    n_index_rows += n_indexer_rows(config_.model, micro.tokens);
    n_tokens += micro.tokens.n_tokens();
    out.micro.push_back(std::move(micro));
  }
  std::vector<std::array<std::int64_t, 5>> all(static_cast<std::size_t>(ranks_.size()));
  ranks_.all_gather(std::span<const std::array<std::int64_t, 5>>(&counts, 1), std::span(all));
  for (const auto& [targets, mtp, sequences, index_rows, tokens] : all) {
    out.n_targets += targets, out.n_mtp_targets += mtp;
    out.n_sequences += sequences, out.n_index_rows += index_rows;
    out.n_tokens.push_back(tokens);
  }
  out.n_inputs = batch.n_inputs;
  out.seconds = seconds_since(begin);
  return out;
}

bool Trainer::chooses_ahead(std::int64_t layer, const StepPlan& plan) const {
  if (config_.model.layer(layer).hash_routed) return false;
  return layer < config_.model.num_hidden_layers || plan.mtp_weight > 0;
}

// A forward pass with the weights of now, only for what the routers choose.
void Trainer::choose_experts(Prepared& batch, const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  ExecContext ctx = context_with_ranks();
  StepWatch watch(config_.model, {.record_choices = true}, ctx);
  for (std::int64_t l = 0; l < std::ssize(config_.model.layers); ++l) {
    batch.chosen_layers.push_back(chooses_ahead(l, plan));
  }
  for (const MicroBatch& micro : batch.micro) {
    model::InBatchKv kv(config_.model, numerics(), allocator_);
    watch.begin(sequence_bounds(micro.tokens), nullptr);
    LossOptions options{.mtp_scale = plan.mtp_weight > 0 ? 1.0f : 0.0f,
                        .step = step_options(plan, &watch)};
    static_cast<void>(run_losses(ctx, *model_, micro, kv, options));
    batch.choices.push_back(watch.take_choices());
  }
  batch.seconds += seconds_since(begin);
}

Trainer::Prepared Trainer::next_batch(const StepPlan& plan) {
  if (anticipatory_steps_ == 0) {
    if (ahead_.empty()) return fetch(plan);
    Prepared batch = std::move(ahead_.front());  // draining what was chosen ahead
    ahead_.pop_front();
    return batch;
  }
  // The first step of a period fills the ring with the weights of now: the lag ramps up.
  while (std::ssize(ahead_) < config_.anticipatory.delay + 1) {
    Prepared batch = fetch(plan);
    choose_experts(batch, plan);
    ahead_.push_back(std::move(batch));
  }
  Prepared batch = std::move(ahead_.front());
  ahead_.pop_front();
  return batch;
}

}  // namespace hadal::train
