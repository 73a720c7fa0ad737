// What a trainer is between two steps: taken, copied, given back.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

#include "train/trainer_parts.h"

namespace hadal::train {

namespace {

Tensor copy_of(const Tensor& t) {  // on the host
  Tensor out = Tensor::empty(t.shape(), t.dtype());
  std::memcpy(out.bytes(), t.bytes(), t.nbytes());
  return out;
}

}  // namespace

void Trainer::take_snapshot() {
  Snapshot copy{collect(Extent::own), RunMemory(gpu_), 0};
  for (NamedTensor& t : copy.state.tensors) {
    const Tensor original = t.tensor;
    t.tensor = t.gpu == nullptr ? Tensor::empty(original.shape(), original.dtype())
                                : copy.memory.zeros(original.shape(), original.dtype());
    t.copy_from(original);
    copy.nbytes += original.nbytes();
  }
  snapshots_.push_back(std::move(copy));
  const auto old_enough = [&](const Snapshot& s) {
    return s.state.progress.step + config_.anticipatory.rollback_steps <= progress_.step;
  };
  // The newest one that is far enough back, and those behind it.
  while (snapshots_.size() > 1 && old_enough(snapshots_[1])) snapshots_.pop_front();
}

// False for what is no spike, and for one that came again after kMaxReturns of going back for it.
bool Trainer::may_roll_back(const std::string& spike) {
  constexpr int kMaxReturns = 2;
  if (spike.empty() || progress_.step < returns_.until) return false;
  if (returns_.n < kMaxReturns || snapshots_.back().state.progress.step > returns_.to) return true;
  const std::int64_t from = progress_.step + 1;
  returns_ = {.to = returns_.to, .n = 0, .until = from + config_.anticipatory.period};
  event("spike", fmt::format("step {}: {}; it came again after going back {} times to step {}, so "
                             "the run goes on, and spikes of the next {} steps are let pass",
                             from, spike, kMaxReturns, returns_.to, config_.anticipatory.period));
  return false;
}

void Trainer::roll_back(const std::string& why) {
  const std::int64_t from = progress_.step + 1;
  while (snapshots_.size() > 1 &&
         snapshots_.back().state.progress.step + config_.anticipatory.rollback_steps > from) {
    snapshots_.pop_back();
  }
  const TrainerState& saved = snapshots_.back().state;
  returns_.n = saved.progress.step == returns_.to ? returns_.n + 1 : 1;
  returns_.to = saved.progress.step;
  const TrainerState now = prepare(saved, Extent::own);
  for (std::size_t i = 0; i < saved.tensors.size(); ++i) {
    now.tensors[i].copy_from(saved.tensors[i].tensor);
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
    if (momenta[i]) to.push_back({std::move(name), momenta[i], gpu_});
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
  std::int64_t row = 0;
  for (const ExpertChoices& choices : batch.choices) {
    const Tensor& some = choices[layer];
    stream_.download(some, own.view().slice(row, row + some.dim(0)));
    row += some.dim(0);
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
  for (const Parameter& p : store_->parameters()) s.tensors.push_back(store_->named(p));
  add_optimizer_state(extent, s.tensors);
  if (indexer_optimizer_) {
    for (NamedTensor& t : indexer_optimizer_->state()) {
      t.name.insert(0, "warmup.");
      s.tensors.push_back(std::move(t));
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
  biases_->fetch();
  const ExecContext ctx = context();
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
        choices[l] = ctx.to_device(copy_of(all.slice(at, at + micro.tokens.n_tokens())));
      }
      row += micro.tokens.n_tokens();
      batch.choices.push_back(std::move(choices));
    }
    batch.joined.clear();
  }
  use_format(wanted_format());
  static_cast<void>(working_->refresh(pool_));
}

}  // namespace hadal::train
