#include "train/rank_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string_view>

#include "ops/expert_exchange.h"
#include "train/zero_partition.h"

namespace hadal::train {

namespace {

// Elements that travel at a time.
constexpr std::int64_t kBucketElements = std::int64_t{1} << 22;

// The number behind "experts." in "layers.3.ffn.experts.17.w1.weight".
std::int64_t expert_number(const std::string& name) {
  constexpr std::string_view kWord = ".experts.";
  const std::size_t at = name.find(kWord);
  HADAL_CHECK(at != std::string::npos);
  return std::stoll(name.substr(at + kWord.size()));
}

std::vector<int> expert_owners(const ParameterStore& store, int n_ranks, bool expert_parallel) {
  std::vector<int> owner(store.parameters().size(), 0);  // by parameter
  std::vector<ParameterInfo> layout;
  for (const Parameter& p : store.parameters()) layout.push_back(p.info);
  if (expert_parallel) {
    for (std::size_t i = 0; i < layout.size(); ++i) {
      if (layout[i].role != model::WeightRole::expert) continue;
      owner[i] = ops::rank_of_expert(expert_number(layout[i].name), store.config().n_routed_experts,
                                     n_ranks);
    }
    return owner;
  }
  const ExpertCut cut = cut_experts(layout, n_ranks);
  for (std::size_t i = 0; i < cut.order.size(); ++i) {
    const std::int64_t of_kind = static_cast<std::int64_t>(i) % cut.per_kind;
    owner[cut.order[i]] = static_cast<int>(of_kind / cut.per_rank);
  }
  return owner;
}

}  // namespace

std::vector<int> matrix_owners(const ParameterStore& store, int n_ranks, bool expert_parallel) {
  const std::vector<int> of_expert = expert_owners(store, n_ranks, expert_parallel);
  std::vector<LogicalMatrix> dense;
  for (const LogicalMatrix& m : store.matrices()) {
    if (!m.expert) dense.push_back(m);
  }
  const ZeroPartition partition = partition_matrices(dense, n_ranks);
  std::vector<int> owners;
  std::size_t next = 0;
  for (const LogicalMatrix& m : store.matrices()) {
    owners.push_back(m.expert ? of_expert[m.parameter - 1] : partition.rank_of[next++]);
  }
  return owners;
}

RankExchange::RankExchange(const ParameterStore& store, parallel::Communicator& ranks,
                           bool expert_parallel)
    : store_(&store),
      ranks_(&ranks),
      expert_parallel_(expert_parallel),
      owners_(matrix_owners(store, ranks.size(), expert_parallel)) {
  const std::int64_t n_experts = store.config().n_routed_experts;
  if (expert_parallel && n_experts < ranks.size()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("train.expert_parallel: {} experts for {} processes; wanted at least "
                            "one each. Start fewer processes or switch it off",
                            n_experts, ranks.size()));
  }
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    const bool divided = is_divided(store.at(store.matrices()[i].parameter).info);
    (divided ? divided_ : shared_).push_back(i);
  }
  for (const Parameter& p : store.parameters()) {
    const bool foreign =
        is_divided(p.info) &&
        ops::rank_of_expert(expert_number(p.info.name), n_experts, ranks.size()) != ranks.rank();
    foreign_.push_back(foreign ? 1 : 0);
  }
}

// On AdamW, which every rank runs alike, experts have their gradients summed as others have.
bool RankExchange::is_divided(const ParameterInfo& info) const {
  return expert_parallel_ && info.role == model::WeightRole::expert &&
         info.group == ParameterGroup::muon;
}

std::vector<std::uint8_t> RankExchange::owned() const {
  std::vector<std::uint8_t> owned;
  if (ranks_->size() == 1) return owned;
  for (const int owner : owners_) owned.push_back(owner == ranks_->rank() ? 1 : 0);
  return owned;
}

void RankExchange::sum_gradients() {
  if (ranks_->size() == 1) return;
  // Small ones travel together.
  std::vector<float> bucket;
  std::vector<const Parameter*> inside;
  const auto flush = [&] {
    ranks_->all_reduce_sum(std::span(bucket));
    const float* from = bucket.data();
    for (const Parameter* p : inside) {
      std::memcpy(p->gradient.bytes(), from, p->gradient.nbytes());
      from += p->gradient.numel();
    }
    bucket.clear(), inside.clear();
  };
  for (const Parameter& p : store_->parameters()) {
    if (!p.gradient || is_divided(p.info)) continue;
    const std::span<float> g(p.gradient.data<float>(),
                             static_cast<std::size_t>(p.gradient.numel()));
    if (std::ssize(g) >= kBucketElements) {
      ranks_->all_reduce_sum(g);
      continue;
    }
    if (std::ssize(bucket) + std::ssize(g) > kBucketElements) flush();
    bucket.insert(bucket.end(), g.begin(), g.end());
    inside.push_back(&p);
  }
  flush();
}

void RankExchange::sum(LossSums& sums) {
  std::array<double, 2> losses{sums.main, sums.mtp};
  std::array<std::int64_t, 2> counts{sums.n_targets, sums.n_mtp_targets};
  ranks_->all_reduce_sum(std::span<double>(losses));
  ranks_->all_reduce_sum(std::span<std::int64_t>(counts));
  sums = {losses[0], losses[1], counts[0], counts[1]};
}

void RankExchange::sum(StepWatch& watch) {
  if (ranks_->size() == 1) return;
  std::vector<double> losses;
  std::vector<std::int64_t> counts;
  for (const StepWatch::Layer& layer : watch.layers()) {
    losses.insert(losses.end(), {layer.balance_loss, layer.index_loss.sum,
                                 layer.index_loss.recall_sum, layer.index_loss.best_recall_sum});
    counts.insert(counts.end(), layer.load.begin(), layer.load.end());
    const ClampCounts& c = layer.clamps;
    counts.insert(counts.end(),
                  {layer.n_sequences, layer.index_loss.n_rows, layer.index_loss.n_recall_rows,
                   c.gate_above, c.up_above, c.up_below, c.n_values});
  }
  ranks_->all_reduce_sum(std::span(losses));
  ranks_->all_reduce_sum(std::span(counts));
  const double* loss = losses.data();
  const std::int64_t* count = counts.data();
  for (StepWatch::Layer& layer : watch.layers()) {
    layer.balance_loss = *loss++, layer.index_loss.sum = *loss++;
    layer.index_loss.recall_sum = *loss++, layer.index_loss.best_recall_sum = *loss++;
    for (std::int64_t& n : layer.load) n = *count++;
    layer.n_sequences = *count++, layer.index_loss.n_rows = *count++;
    layer.index_loss.n_recall_rows = *count++;
    ClampCounts& c = layer.clamps;
    c.gate_above = *count++, c.up_above = *count++;
    c.up_below = *count++, c.n_values = *count++;
  }
}

void RankExchange::sum(UpdateStats& stats) {
  ranks_->all_reduce_sum(std::span(&stats.sum_squares, 1));
  ranks_->all_reduce_sum(std::span(&stats.n_elements, 1));
}

void RankExchange::merge(GradientReport& report) {
  if (ranks_->size() == 1) return;
  std::vector<double> divided;
  const auto parameters = store_->parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (is_divided(parameters[i].info)) divided.push_back(report.sums[i]);
  }
  // Zero where it is another's: the sum is the owner's value.
  ranks_->all_reduce_sum(std::span(divided));
  std::size_t next = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (is_divided(parameters[i].info)) report.sums[i] = divided[next++];
  }

  struct Found {
    std::int64_t parameter, index;
    float value;
  };
  const auto none = static_cast<std::int64_t>(parameters.size());
  Found own{none, 0, 0.0f};
  if (report.non_finite) {
    own = {static_cast<std::int64_t>(store_->at(report.non_finite->name).info.id) - 1,
           report.non_finite->index, report.non_finite->value};
  }
  std::vector<Found> all(static_cast<std::size_t>(ranks_->size()));
  ranks_->all_gather(std::span<const Found>(&own, 1), std::span(all));
  const Found first = *std::min_element(all.begin(), all.end(), [](const Found& a, const Found& b) {
    return a.parameter < b.parameter;
  });
  report.non_finite.reset();
  if (first.parameter < none) {
    report.non_finite = NonFiniteGradient{
        parameters[static_cast<std::size_t>(first.parameter)].info.name, first.index, first.value};
  }
}

Tensor RankExchange::value_of(std::size_t matrix) const {
  const LogicalMatrix& m = store_->matrices()[matrix];
  return store_->at(m.parameter).value.slice(m.rows.begin, m.rows.end);
}

void RankExchange::share_values() {
  share(shared_, [this](std::size_t i) { return value_of(i); });
}

void RankExchange::share_experts() {
  share(divided_, [this](std::size_t i) { return value_of(i); });
}

void RankExchange::share_matrices(const std::function<Tensor(std::size_t)>& tensor_of) {
  std::vector<std::size_t> all(owners_.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  share(all, tensor_of);
}

void RankExchange::share(std::span<const std::size_t> matrices,
                         const std::function<Tensor(std::size_t)>& tensor_of) {
  if (ranks_->size() == 1) return;
  struct Travelling {
    Tensor tensor;
    std::size_t rank;
  };
  std::vector<Travelling> bucket;
  std::int64_t n_elements = 0;
  const auto rank = static_cast<std::size_t>(ranks_->rank());
  const auto flush = [&] {
    std::vector<std::int64_t> n_bytes(static_cast<std::size_t>(ranks_->size()));
    std::vector<std::byte> own;
    for (const Travelling& p : bucket) {
      n_bytes[p.rank] += static_cast<std::int64_t>(p.tensor.nbytes());
      if (p.rank != rank) continue;
      own.insert(own.end(), p.tensor.bytes(), p.tensor.bytes() + p.tensor.nbytes());
    }
    std::vector<std::byte> all(
        static_cast<std::size_t>(std::accumulate(n_bytes.begin(), n_bytes.end(), std::int64_t{0})));
    ranks_->all_gather(own, n_bytes, all);
    std::vector<std::int64_t> at(n_bytes.size());
    std::exclusive_scan(n_bytes.begin(), n_bytes.end(), at.begin(), std::int64_t{0});
    for (const Travelling& p : bucket) {
      if (p.rank != rank) {
        std::memcpy(p.tensor.bytes(), all.data() + at[p.rank], p.tensor.nbytes());
      }
      at[p.rank] += static_cast<std::int64_t>(p.tensor.nbytes());
    }
    bucket.clear();
    n_elements = 0;
  };
  for (const std::size_t i : matrices) {
    Tensor tensor = tensor_of(i);
    if (!tensor) continue;
    if (n_elements > 0 && n_elements + tensor.numel() > kBucketElements) flush();
    n_elements += tensor.numel();
    bucket.push_back({std::move(tensor), static_cast<std::size_t>(owners_[i])});
  }
  flush();
}

}  // namespace hadal::train
