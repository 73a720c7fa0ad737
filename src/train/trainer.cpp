#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>

#include "model/in_batch_kv.h"
#include "train/balance.h"
#include "train/initialise.h"

namespace hadal::train {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<std::int64_t> sequence_bounds(const model::TokenBatch& tokens) {
  std::vector<std::int64_t> bounds{0};
  for (const model::TokenBatch::Sequence& s : tokens.sequences) bounds.push_back(s.end);
  return bounds;
}

// Queries that may see an entry of some CSA layer.
std::int64_t n_indexer_rows(const model::Config& config, const model::TokenBatch& tokens) {
  if (!config.has_csa()) return 0;
  std::int64_t n = 0;
  for (const model::TokenBatch::Sequence& s : tokens.sequences) {
    n += ops::rows_with_entries(s.end - s.begin, model::kCsaRatio);
  }
  return n;
}

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Tensor copy_of(const Tensor& t) {
  Tensor out = Tensor::empty(t.shape(), t.dtype());
  std::memcpy(out.bytes(), t.bytes(), t.nbytes());
  return out;
}

}  // namespace

struct Trainer::Prepared {
  LoaderState before;  // of the loader, in front of this batch
  std::vector<MicroBatch> micro;
  std::vector<ExpertChoices> choices;  // by micro-batch; empty: the router's own
  std::vector<bool> chosen_layers;     // that `choices` is about; the same on all ranks
  // While a state is being restored: choices by layer, of one rank's tokens or of all ranks'.
  std::vector<Tensor> joined;
  std::vector<std::int64_t> n_tokens;  // by rank
  // Of all ranks.
  std::int64_t n_inputs = 0, n_targets = 0, n_mtp_targets = 0, n_sequences = 0, n_index_rows = 0;
  double seconds = 0;
};

struct Trainer::Snapshot {
  TrainerState state;  // tensors copied
};

struct Trainer::Accumulated {
  LossSums sums;
  double forward_seconds = 0, backward_seconds = 0;
};

Trainer::Trainer(const RunConfig& config, const DataSet& data, ThreadPool& pool,
                 parallel::Communicator& ranks)
    : config_(config),
      data_(data),
      pool_(pool),
      ranks_(ranks),
      stream_(pool),
      store_(std::make_unique<ParameterStore>(config.model, config.groups)),
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
  std::vector<std::int64_t> counts;
  if (config.model.num_hash_layers > 0) {
    for (const std::uint64_t n : data.frequencies(kTrainSplit)) {
      counts.push_back(static_cast<std::int64_t>(n));
    }
    counts.resize(static_cast<std::size_t>(config.model.vocab_size), 0);
  }
  train::initialise(pool, *store_, config.seed, counts);
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

model::StepOptions Trainer::step_options(const StepPlan& plan, StepWatch* watch) const {
  return {.csa_selection = plan.phase == AttentionPhase::sparse ? model::CsaSelection::indexer
                                                                : model::CsaSelection::all,
          .observer = watch};
}

bool Trainer::chooses_ahead(std::int64_t layer, const StepPlan& plan) const {
  if (config_.model.layer(layer).hash_routed) return false;
  return layer < config_.model.num_hidden_layers || plan.mtp_weight > 0;
}

// A forward pass with the weights of now, only for what the routers choose.
void Trainer::choose_experts(Prepared& batch, const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  ExecContext ctx = context_with_ranks();
  StepWatch watch(config_.model, {.record_choices = true});
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

Tensor Trainer::gate_bias(std::int64_t layer) const {
  if (config_.model.layer(layer).hash_routed) return {};
  const std::int64_t mtp = layer - config_.model.num_hidden_layers;
  return store_
      ->at(mtp < 0 ? fmt::format("layers.{}.ffn.gate.bias", layer)
                   : fmt::format("mtp.{}.ffn.gate.bias", mtp))
      .value;
}

void Trainer::update_biases(const StepWatch& watch, double speed) {
  for (std::size_t i = 0; i < watch.layers().size(); ++i) {
    const std::vector<std::int64_t>& load = watch.layers()[i].load;
    const Tensor bias = gate_bias(static_cast<std::int64_t>(i));
    const bool ran = std::any_of(load.begin(), load.end(), [](std::int64_t n) { return n > 0; });
    if (!bias || !ran) continue;  // an MTP block may not have run
    update_bias(std::span(bias.data<float>(), static_cast<std::size_t>(bias.numel())), load,
                static_cast<float>(speed));
  }
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
  StepWatch watch(
      config_.model,
      {.balance_scale = warmup
                            ? 0.0f
                            : static_cast<float>(config_.balance_weight) /
                                  static_cast<float>(std::max<std::int64_t>(1, batch.n_sequences)),
       .indexer_scale = static_cast<float>(plan.indexer_loss_weight) /
                        static_cast<float>(std::max<std::int64_t>(1, batch.n_index_rows))});
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
    if (snapshots_.empty()) spike.clear();
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
  if (!warmup && speed > 0) update_biases(watch, speed);
  WorkingWeights::Refreshed refreshed = working_->refresh(pool_, exchange_.foreign());
  if (exchange_.divides_experts()) {  // only experts are stored in FP4
    ranks_.all_reduce_sum(std::span(&refreshed.n_lifted, 1));
  }
  progress_ = advance(progress_, plan, batch.n_inputs);
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
  record.time = unix_time();
  return record;
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
    const Tensor bias = gate_bias(static_cast<std::int64_t>(i));
    if (bias) {
      const auto [low, high] =
          std::minmax_element(bias.data<const float>(), bias.data<const float>() + bias.numel());
      record.bias_spread.push_back(double{*high} - double{*low});
    } else {
      record.bias_spread.push_back(std::nan(""));
    }
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
  for (const NamedTensor& t : optimizer_->state()) n += t.tensor.nbytes();
  if (indexer_optimizer_) {
    for (const NamedTensor& t : indexer_optimizer_->state()) n += t.tensor.nbytes();
  }
  for (const Snapshot& s : snapshots_) {
    for (const NamedTensor& t : s.state.tensors) n += t.tensor.nbytes();
  }
  return n;
}

void Trainer::take_snapshot() {
  TrainerState copy = collect(Extent::own);
  for (NamedTensor& t : copy.tensors) t.tensor = copy_of(t.tensor);
  snapshots_.push_back({std::move(copy)});
  const auto old_enough = [&](const Snapshot& s) {
    return s.state.progress.step + config_.anticipatory.rollback_steps <= progress_.step;
  };
  // The newest one that is far enough back, and those behind it.
  while (snapshots_.size() > 1 && old_enough(snapshots_[1])) snapshots_.pop_front();
}

void Trainer::roll_back(const std::string& why) {
  const std::int64_t from = progress_.step + 1;
  while (snapshots_.size() > 1 &&
         snapshots_.back().state.progress.step + config_.anticipatory.rollback_steps > from) {
    snapshots_.pop_back();
  }
  const TrainerState& saved = snapshots_.back().state;
  const TrainerState now = prepare(saved, Extent::own);
  for (std::size_t i = 0; i < saved.tensors.size(); ++i) {
    std::memcpy(now.tensors[i].tensor.bytes(), saved.tensors[i].tensor.bytes(),
                saved.tensors[i].tensor.nbytes());
  }
  resumed();
  experts_are_old_ = exchange_.divides_experts() && ranks_.size() > 1;
  if (config_.anticipatory.enable) anticipatory_steps_ = config_.anticipatory.period;
  event(std::string(event::kRollback),
        fmt::format("step {}: {}; back to step {}{}", from, why, progress_.step,
                    config_.anticipatory.enable
                        ? fmt::format(", experts chosen {} steps ahead for {} steps",
                                      config_.anticipatory.delay, config_.anticipatory.period)
                        : ""));
}

void Trainer::synchronise() {
  if (!experts_are_old_) return;
  exchange_.share_experts();
  static_cast<void>(working_->refresh(pool_));
  experts_are_old_ = false;
}

TrainerState Trainer::state() {
  synchronise();
  return collect(Extent::all);
}

// Momenta in file order, those of other ranks fetched from there.
void Trainer::add_optimizer_state(Extent extent, std::vector<NamedTensor>& to) const {
  std::vector<NamedTensor> here = optimizer_->state();
  const auto is_momentum = [](const NamedTensor& t) { return t.name.starts_with("muon."); };
  const auto rest = std::stable_partition(here.begin(), here.end(), is_momentum);
  auto own = here.begin();
  const std::span<const LogicalMatrix> matrices = store_->matrices();
  std::vector<Tensor> momenta(matrices.size());
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const LogicalMatrix& m = matrices[i];
    std::string name = Muon::state_name(store_->at(m.parameter).info, m.rows);
    if (own != rest && own->name == name) {
      momenta[i] = own->tensor;
      ++own;
    } else if (extent != Extent::own && m.n_rows() > 0 && m.cols > 0) {
      momenta[i] = Tensor::zeros({m.n_rows(), m.cols}, DType::f32);
    }
    if (momenta[i]) to.push_back({std::move(name), momenta[i]});
  }
  if (extent == Extent::all) exchange_.share_matrices([&](std::size_t i) { return momenta[i]; });
  std::move(rest, here.end(), std::back_inserter(to));
}

// [tokens, topk]; ranks have their samples in order, so their tokens are the batch's, in order.
Tensor Trainer::joined_choices(const Prepared& batch, std::size_t layer, Extent extent) const {
  if (!batch.joined.empty()) return batch.joined[layer];
  const std::int64_t topk = config_.model.num_experts_per_tok;
  const Tensor own =
      Tensor::empty({batch.n_tokens[static_cast<std::size_t>(ranks_.rank())], topk}, DType::i32);
  std::byte* to = own.bytes();
  for (const ExpertChoices& choices : batch.choices) {
    std::memcpy(to, choices[layer].bytes(), choices[layer].nbytes());
    to += choices[layer].nbytes();
  }
  if (extent == Extent::own || ranks_.size() == 1) return own;
  std::vector<std::int64_t> n_bytes;
  for (const std::int64_t n : batch.n_tokens) {
    n_bytes.push_back(static_cast<std::int64_t>(nbytes({n, topk}, DType::i32)));
  }
  const Tensor all = Tensor::empty(
      {std::accumulate(batch.n_tokens.begin(), batch.n_tokens.end(), std::int64_t{0}), topk},
      DType::i32);
  ranks_.all_gather({own.bytes(), own.nbytes()}, n_bytes, {all.bytes(), all.nbytes()});
  return all;
}

TrainerState Trainer::collect(Extent extent) {
  TrainerState s{.progress = progress_,
                 .loader = ahead_.empty() ? loader_.state() : ahead_.front().before,
                 .spikes = spikes_.state(),
                 .anticipatory_steps = anticipatory_steps_,
                 .choices_ahead = std::ssize(ahead_),
                 .in_warmup = indexer_optimizer_ != nullptr,
                 .tensors = {}};
  for (const Parameter& p : store_->parameters()) s.tensors.push_back({p.info.name, p.value});
  add_optimizer_state(extent, s.tensors);
  if (indexer_optimizer_) {
    for (NamedTensor& t : indexer_optimizer_->state()) {
      s.tensors.push_back({"warmup." + t.name, std::move(t.tensor)});
    }
  }
  for (std::size_t b = 0; b < ahead_.size(); ++b) {
    for (std::size_t l = 0; l < ahead_[b].chosen_layers.size(); ++l) {
      if (!ahead_[b].chosen_layers[l]) continue;
      s.tensors.push_back({fmt::format("ahead.{}.{}", b, l), joined_choices(ahead_[b], l, extent)});
    }
  }
  return s;
}

TrainerState Trainer::prepare_restore(const TrainerState& numbers) {
  experts_are_old_ = false;  // every value will be written
  return prepare(numbers, Extent::all_empty);
}

TrainerState Trainer::prepare(const TrainerState& numbers, Extent extent) {
  progress_ = numbers.progress;
  spikes_.restore(numbers.spikes);
  anticipatory_steps_ = numbers.anticipatory_steps;
  loader_.restore(numbers.loader);
  indexer_optimizer_.reset();
  if (numbers.in_warmup) {
    indexer_optimizer_ =
        std::make_unique<Optimizer>(*store_, config_.optimizer, Trained::indexer_only);
  }
  // The batches come again from the data; what was chosen for them does not.
  ahead_.clear();
  const StepPlan plan = plan_step(config_.schedule, progress_);
  const std::int64_t n_layers = std::ssize(config_.model.layers);
  for (std::int64_t i = 0; i < numbers.choices_ahead; ++i) {
    Prepared batch = fetch(plan);
    const std::int64_t n_tokens =
        extent == Extent::own
            ? batch.n_tokens[static_cast<std::size_t>(ranks_.rank())]
            : std::accumulate(batch.n_tokens.begin(), batch.n_tokens.end(), std::int64_t{0});
    batch.joined.resize(static_cast<std::size_t>(n_layers));
    for (std::int64_t l = 0; l < n_layers; ++l) {
      batch.chosen_layers.push_back(chooses_ahead(l, plan));
      if (!batch.chosen_layers.back()) continue;
      batch.joined[static_cast<std::size_t>(l)] =
          Tensor::zeros({n_tokens, config_.model.num_experts_per_tok}, DType::i32);
    }
    ahead_.push_back(std::move(batch));
  }
  return collect(extent);
}

void Trainer::resumed() {
  started_ = false;
  for (Prepared& batch : ahead_) {
    if (batch.joined.empty()) continue;
    const auto own = batch.n_tokens.begin() + ranks_.rank();
    const std::int64_t before = std::accumulate(batch.n_tokens.begin(), own, std::int64_t{0});
    std::int64_t row = 0;
    for (const MicroBatch& micro : batch.micro) {
      ExpertChoices choices(batch.joined.size());
      for (std::size_t l = 0; l < choices.size(); ++l) {
        const Tensor& all = batch.joined[l];
        if (!all) continue;
        const std::int64_t at = row + (all.dim(0) == *own ? 0 : before);
        choices[l] = copy_of(all.slice(at, at + micro.tokens.n_tokens()));
      }
      row += micro.tokens.n_tokens();
      batch.choices.push_back(std::move(choices));
    }
    batch.joined.clear();
  }
  use_format(wanted_format());
  static_cast<void>(working_->refresh(pool_));
}

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
    const Tensor logits = model_->logits(ctx, streams, rows);
    const auto* z = logits.data<const float>();
    const auto best = static_cast<TokenId>(std::max_element(z, z + logits.numel()) - z);
    const auto& eos = config_.model.eos_token_id;
    if (std::find(eos.begin(), eos.end(), std::int64_t{best}) != eos.end()) break;
    prompt.push_back(best);
  }
  return {prompt.begin() + n_prompt, prompt.end()};
}

}  // namespace hadal::train
