#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "model/in_batch_kv.h"
#include "train/balance.h"
#include "train/initialise.h"
#include "train/trainer_parts.h"

namespace hadal::train {

namespace {

cuda::Queue* of_one_process(cuda::Queue* gpu, const parallel::Communicator& ranks) {
  if (gpu == nullptr || ranks.size() == 1) return gpu;
  throw Error(ErrorCode::unsupported,
              fmt::format("training on a GPU has one process, and there are {}; start it without "
                          "mpirun, or with --device cpu",
                          ranks.size()));
}

}  // namespace

Trainer::Trainer(const RunConfig& config, const DataSet& data, ThreadPool& pool,
                 parallel::Communicator& ranks, cuda::Queue* gpu)
    : config_(config),
      data_(data),
      pool_(pool),
      ranks_(ranks),
      gpu_(of_one_process(gpu, ranks)),
      stream_(gpu == nullptr ? Stream(pool) : Stream(pool, *gpu)),
      allocator_(gpu == nullptr ? host_pool_ : gpu->memory()),
      store_(std::make_unique<ParameterStore>(config.model, config.groups, gpu)),
      exchange_(*store_, ranks, config.expert_parallel),
      loader_(data.split(kTrainSplit),
              {.seed = config.seed,
               .alignment = config.alignment,
               .pad_token = std::max<TokenId>(data.manifest().pad_token, 0)}),
      spikes_({.window = config.anticipatory.window,
               .loss_z = config.anticipatory.loss_z,
               .gradient_ratio = config.anticipatory.gradient_ratio}) {
  expect_vocabulary(data.manifest(), data.directory(), config.model.vocab_size);
  expect_same_on_all_ranks();
  kernels::cpu::register_kernels(registry_);
  kernels::cuda::register_kernels(registry_);
  std::vector<std::int64_t> counts;
  if (config.model.num_hash_layers > 0) {
    for (const std::uint64_t n : data.frequencies(kTrainSplit)) {
      counts.push_back(static_cast<std::int64_t>(n));
    }
    counts.resize(static_cast<std::size_t>(config.model.vocab_size), 0);
  }
  train::initialise(pool, *store_, config.seed, counts);
  biases_ = std::make_unique<SelectionBiases>(*store_);
  optimizer_ =
      std::make_unique<Optimizer>(*store_, config.optimizer, Trained::all, exchange_.owned());
  tape_ = std::make_unique<Tape>(allocator_, static_cast<VariableId>(store_->parameters().size()));
  tape_->recompute_enabled = config.recompute;
  use_format(wanted_format());
}

Trainer::~Trainer() = default;

// What would go wrong silently. The rest of the config is one file, handed to all of them.
void Trainer::expect_same_on_all_ranks() const {
  const LoaderState& loader = loader_.state();
  const std::array<std::int64_t, 6> own{static_cast<std::int64_t>(config_.seed),
                                        std::ssize(store_->parameters()),
                                        loader.n_documents,
                                        loader.n_tokens,
                                        config_.schedule.total_tokens,
                                        config_.expert_parallel ? 1 : 0};
  std::vector<std::int64_t> all(own.size() * static_cast<std::size_t>(ranks_.size()));
  ranks_.all_gather(std::span<const std::int64_t>(own), std::span(all));
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i] == all[i % own.size()]) continue;
    throw Error(ErrorCode::invalid_argument,
                fmt::format("process {} of {} has another config or other data than process 0; "
                            "start all of them with the same files",
                            i / own.size(), ranks_.size()));
  }
}

Numerics Trainer::numerics() const {
  return config_.compute == Compute::f32 ? Numerics::fp32 : Numerics::official;
}

ExecContext Trainer::context() {
  return {stream_, allocator_, registry_, numerics()};
}

ExecContext Trainer::context_with_ranks() {
  ExecContext ctx = context();
  if (exchange_.divides_experts()) ctx.set_expert_ranks(&ranks_);
  return ctx;
}

bool Trainer::is_finished() const {
  return train::is_finished(config_.schedule, progress_);
}

model::WeightFormat Trainer::wanted_format() const {
  if (config_.compute == Compute::f32) return model::WeightFormat::f32;
  const auto start = config_.qat_start * static_cast<double>(config_.schedule.total_tokens);
  return config_.compute == Compute::qat && static_cast<double>(progress_.tokens) >= start
             ? model::WeightFormat::published
             : model::WeightFormat::bf16;
}

void Trainer::use_format(model::WeightFormat format) {
  if (working_ && working_->format() == format) return;
  const bool is_switch = working_ != nullptr;
  model_.reset();
  working_ = std::make_unique<WorkingWeights>(*store_, format, pool_);
  model_ = std::make_unique<model::Model>(config_.model, working_->bind());
  if (is_switch) {
    event("format",
          fmt::format(
              "weights are multiplied as {} from here on",
              format == model::WeightFormat::published ? "FP4 experts and FP8 linears" : "bf16"));
  }
}

void Trainer::event(const std::string& kind, const std::string& sentence) {
  if (!on_event) return;
  EventRecord record;
  record.step = n_steps();
  record.tokens = progress_.tokens;
  record.time = unix_time();
  record.what = kind;
  record.sentence = sentence;
  on_event(record);
}

void Trainer::bind_gradients(AttentionPhase phase) {
  for (const Parameter& p : store_->parameters()) {
    if (p.info.group == ParameterGroup::frozen) continue;
    const bool learns = phase != AttentionPhase::indexer_warmup || p.info.of_indexer;
    tape_->set_gradient(p.info.id, learns ? p.gradient : Tensor());
  }
}

void Trainer::enter_phase(const StepPlan& plan) {
  if (started_ && phase_ == plan.phase) return;
  phase_ = plan.phase;
  started_ = true;
  flops_.reset();
  if (phase_ == AttentionPhase::indexer_warmup) {
    if (!indexer_optimizer_) {
      indexer_optimizer_ =
          std::make_unique<Optimizer>(*store_, config_.optimizer, Trained::indexer_only);
    }
  } else {
    indexer_optimizer_.reset();
  }
  bind_gradients(phase_);
  event(std::string(event::kPhase),
        fmt::format("{}: sequences of {} tokens, {} a step", to_string(phase_),
                    plan.sequence_length, plan.batch_tokens));
}

model::StepOptions Trainer::step_options(const StepPlan& plan, StepWatch* watch) const {
  return {.csa_selection = plan.phase == AttentionPhase::sparse ? model::CsaSelection::indexer
                                                                : model::CsaSelection::all,
          .observer = watch};
}

Trainer::Accumulated Trainer::run(const Prepared& batch, const StepPlan& plan, StepWatch& watch) {
  Accumulated out;
  const bool warmup = plan.phase == AttentionPhase::indexer_warmup;
  LossOptions options{
      .scale = 1.0f / static_cast<float>(std::max<std::int64_t>(1, batch.n_targets)),
      .mtp_scale = static_cast<float>(plan.mtp_weight) /
                   static_cast<float>(std::max<std::int64_t>(1, batch.n_mtp_targets)),
      .main_loss = !warmup,
      .step = step_options(plan, &watch)};
  ExecContext ctx = context_with_ranks();
  ctx.set_tape(tape_.get());
  for (std::size_t i = 0; i < batch.micro.size(); ++i) {
    const MicroBatch& micro = batch.micro[i];
    auto begin = std::chrono::steady_clock::now();
    model::InBatchKv kv(config_.model, numerics(), allocator_);
    watch.begin(sequence_bounds(micro.tokens), batch.choices.empty() ? nullptr : &batch.choices[i]);
    try {
      out.sums += run_losses(ctx, *model_, micro, kv, options);
      out.forward_seconds += seconds_since(begin);
      begin = std::chrono::steady_clock::now();
      tape_->backward(ctx);
      watch.settle();
    } catch (...) {
      tape_->clear();
      throw;
    }
    out.backward_seconds += seconds_since(begin);
  }
  return out;
}

void Trainer::expect_finite(const LossSums& sums, const GradientReport& gradients) const {
  std::string what;
  if (!std::isfinite(sums.main)) what = "the loss";
  if (what.empty() && !std::isfinite(sums.mtp)) what = "the MTP loss";
  if (what.empty() && gradients.non_finite) {
    what = fmt::format("the gradient of {} at element {} ({})", gradients.non_finite->name,
                       gradients.non_finite->index, gradients.non_finite->value);
  }
  if (what.empty()) return;
  throw Error(ErrorCode::corrupt_data,
              fmt::format("step {}: {} is not finite; the weights are those of the step before. "
                          "Resume from the last checkpoint with a lower lr.peak, or set "
                          "train.on_non_finite = \"rollback\"",
                          n_steps() + 1, what));
}

StepRecord Trainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  const StepPlan plan = plan_step(config_.schedule, progress_);
  use_format(wanted_format());
  enter_phase(plan);
  const bool warmup = plan.phase == AttentionPhase::indexer_warmup;
  const bool keeps_snapshots =
      config_.anticipatory.enable || config_.on_non_finite == OnNonFinite::rollback;
  if (keeps_snapshots && !warmup && ahead_.empty() &&
      progress_.step % config_.anticipatory.snapshot_every == 0) {
    take_snapshot();
  }
  allocator_.reset_peak();
  store_->zero_gradients(pool_);

  const bool drains = anticipatory_steps_ == 0 && !ahead_.empty();
  Prepared batch = next_batch(plan);
  const auto over = [](double weight, std::int64_t n) {
    return static_cast<float>(weight) / static_cast<float>(std::max<std::int64_t>(1, n));
  };
  StepWatch watch(config_.model,
                  {.balance_scale = warmup ? 0.0f : over(config_.balance_weight, batch.n_sequences),
                   .indexer_scale = over(plan.indexer_loss_weight, batch.n_index_rows)},
                  context());
  Accumulated done = run(batch, plan, watch);
  exchange_.sum(done.sums);
  exchange_.sum(watch);
  exchange_.sum_gradients();

  const ExecContext ctx = context();
  Optimizer& optimizer = warmup ? *indexer_optimizer_ : *optimizer_;
  GradientReport gradients = optimizer.measure(ctx);
  exchange_.merge(gradients);
  const double norm = gradients.norm();

  StepRecord record;
  record.step = n_steps() + 1;
  record.phase = to_string(plan.phase);
  record.stage = static_cast<std::int64_t>(plan.stage);
  record.sequence_length = plan.sequence_length;
  record.batch_tokens = batch.n_inputs;
  record.lr = plan.lr;
  record.loss = warmup ? std::nan("") : done.sums.main_mean();
  if (done.sums.n_mtp_targets > 0) record.mtp_loss = done.sums.mtp_mean();
  record.grad_norm = norm;
  record.seconds.data = batch.seconds;
  record.seconds.forward = done.forward_seconds;
  record.seconds.backward = done.backward_seconds;

  std::string spike;
  const bool finite = std::isfinite(done.sums.main) && std::isfinite(done.sums.mtp) &&
                      !gradients.non_finite.has_value();
  if (!finite) {
    if (config_.on_non_finite == OnNonFinite::stop || snapshots_.empty()) {
      expect_finite(done.sums, gradients);
    }
    spike = "a loss or a gradient is not finite";
  } else if (!warmup && config_.anticipatory.enable) {
    spike = spikes_.observe(record.loss, norm);
    if (snapshots_.empty() || !may_roll_back(spike)) spike.clear();
  }
  if (!spike.empty()) {
    record.tokens = progress_.tokens;
    roll_back(spike);
    record.clipped_grad_norm = 0;
    record.clipped = true;  // to nothing: this step was not taken
    record.seconds.step = seconds_since(begin);
    record.time = unix_time();
    return record;
  }

  StepStats stats = optimizer.step(ctx, plan.lr, norm);
  exchange_.sum(stats.muon);
  if (!warmup) exchange_.share_values();
  experts_are_old_ = exchange_.divides_experts() && ranks_.size() > 1;
  // While experts are chosen ahead, the load answers late: half the speed keeps the loop calm.
  const double speed = plan.bias_speed * (anticipatory_steps_ > 0 ? 0.5 : 1.0);
  if (!warmup && speed > 0) biases_->update(watch.layers(), speed);
  WorkingWeights::Refreshed refreshed = working_->refresh(pool_, exchange_.foreign());
  if (exchange_.divides_experts()) {  // only experts are stored in FP4
    ranks_.all_reduce_sum(std::span(&refreshed.n_lifted, 1));
  }
  progress_ = advance(progress_, plan, batch.n_inputs);
  // What is usual under dense attention says nothing of sparse attention.
  if (!is_finished() && plan_step(config_.schedule, progress_).phase != plan.phase) {
    spikes_.restore({});
  }
  record.anticipatory = anticipatory_steps_ > 0 ? "on" : drains ? "draining" : "off";
  if (anticipatory_steps_ > 0 && --anticipatory_steps_ == 0) {
    event("anticipatory", "anticipatory routing is over; the ring drains");
  }

  record.tokens = progress_.tokens;
  record.clipped = stats.gradient_scale < 1.0;
  record.clipped_grad_norm = norm * stats.gradient_scale;
  if (stats.muon.n_elements > 0) record.muon_update_rms = stats.muon.rms();
  if (stats.adamw.n_elements > 0) record.adamw_update_rms = stats.adamw.rms();
  record.qat = config_.compute != Compute::qat                        ? "off"
               : working_->format() == model::WeightFormat::published ? "fp4"
                                                                      : "bf16";
  if (record.qat == "fp4") record.scale_lifts = refreshed.n_lifted;
  describe_layers(watch, record);
  record.peak_memory_bytes = static_cast<std::int64_t>(allocator_.peak_bytes() + state_bytes());
  record.seconds.optimizer = stats.seconds;
  record.seconds.newton_schulz = stats.newton_schulz_seconds;
  record.seconds.step = seconds_since(begin);
  record.tokens_per_second = static_cast<double>(batch.n_inputs) / record.seconds.step;
  describe_cost(batch, plan, record);
  record.time = unix_time();
  return record;
}

// Not of the indexer's warm-up, whose passes are neither inference nor training of the model.
void Trainer::describe_cost(const Prepared& batch, const StepPlan& plan, StepRecord& record) {
  if (plan.phase == AttentionPhase::indexer_warmup) return;
  const bool with_mtp = plan.mtp_weight > 0 && model_->n_mtp() > 0;
  if (!flops_ || flops_->with_mtp() != with_mtp) {
    flops_.emplace(config_.model, plan.phase, with_mtp);
  }
  double flops = 0;
  for (const MicroBatch& micro : batch.micro) {
    for (const model::TokenBatch::Sequence& s : micro.tokens.sequences) {
      flops += flops_->of_sequence(s.end - s.begin);
    }
  }
  ranks_.all_reduce_sum(std::span(&flops, 1));
  record.executed_flops = flops;
  if (gpu_ == nullptr) return;  // what a CPU can do would have to be measured
  if (const auto peak = published_peak(gpu_->device(), config_.compute)) {
    record.mfu = flops / record.seconds.step / *peak;
  }
}

void Trainer::describe_layers(const StepWatch& watch, StepRecord& record) const {
  std::int64_t n_sequences = 0, n_rows = 0, n_recall_rows = 0;
  double balance = 0, loss = 0, recall = 0, best_recall = 0;
  for (std::size_t i = 0; i < watch.layers().size(); ++i) {
    const StepWatch::Layer& layer = watch.layers()[i];
    balance += layer.balance_loss, n_sequences += layer.n_sequences;
    loss += layer.index_loss.sum, n_rows += layer.index_loss.n_rows;
    best_recall += layer.index_loss.best_recall_sum;
    recall += layer.index_loss.recall_sum, n_recall_rows += layer.index_loss.n_recall_rows;
    const LoadBalance load = load_balance(layer.load);
    const bool ran = load.max_over_mean > 0;
    record.expert_load.push_back(ran ? load.max_over_mean : std::nan(""));
    record.dead_experts.push_back(ran ? load.n_dead : 0);
    record.bias_spread.push_back(biases_->spread(i));
    const auto share = [&](std::int64_t n) {
      return layer.clamps.n_values == 0
                 ? std::nan("")
                 : static_cast<double>(n) / static_cast<double>(layer.clamps.n_values);
    };
    record.gate_clamped.push_back(share(layer.clamps.gate_above));
    record.up_clamped_high.push_back(share(layer.clamps.up_above));
    record.up_clamped_low.push_back(share(layer.clamps.up_below));
  }
  if (n_sequences > 0) record.balance_loss = balance / static_cast<double>(n_sequences);
  if (n_rows > 0) record.index_loss = loss / static_cast<double>(n_rows);
  if (n_recall_rows > 0) record.index_recall = recall / static_cast<double>(n_recall_rows);
  if (best_recall > 0) record.index_recall_of_best = recall / best_recall;
}

std::size_t Trainer::state_bytes() const {
  std::size_t n = store_->nbytes() + working_->nbytes();
  n += optimizer_->nbytes();
  if (indexer_optimizer_) n += indexer_optimizer_->nbytes();
  for (const Snapshot& s : snapshots_) n += s.nbytes;
  return n;
}

}  // namespace hadal::train
