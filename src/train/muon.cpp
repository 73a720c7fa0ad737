#include "train/muon.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>

#include "core/error.h"
#include "kernels/muon.h"

namespace hadal::train {

namespace {

// Elements of a batch: the memory of a step is three to four times that. A GPU is given more at a
// time, since each batch's sums are waited for.
constexpr std::int64_t kBatchElements = std::int64_t{8} << 20;
constexpr std::int64_t kGpuBatchElements = std::int64_t{32} << 20;

}  // namespace

double UpdateStats::rms() const {
  return n_elements == 0 ? 0.0 : std::sqrt(sum_squares / static_cast<double>(n_elements));
}

Muon::Muon(const ParameterStore& store, MuonOptions options, std::span<const std::uint8_t> owned)
    : options_(std::move(options)), memory_(store.gpu()) {
  const std::int64_t most = store.gpu() == nullptr ? kBatchElements : kGpuBatchElements;
  const std::span<const LogicalMatrix> matrices = store.matrices();
  HADAL_CHECK(owned.empty() || owned.size() == matrices.size());
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> open;  // shape -> batch to add to
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const LogicalMatrix& m = matrices[i];
    if ((!owned.empty() && owned[i] == 0) || m.n_rows() == 0 || m.cols == 0) continue;
    const std::int64_t rows = std::min(m.n_rows(), m.cols), cols = std::max(m.n_rows(), m.cols);
    const auto it = open.find({rows, cols});
    std::size_t batch = it == open.end() ? batches_.size() : it->second;
    if (batch < batches_.size()) {
      const auto n = static_cast<std::int64_t>(batches_[batch].units.size());
      if ((n + 1) * rows * cols > most) batch = batches_.size();
    }
    if (batch == batches_.size()) batches_.push_back({rows, cols, {}});
    open[{rows, cols}] = batch;
    batches_[batch].units.push_back(
        {i, &store.at(m.parameter), m.rows, memory_.zeros({m.n_rows(), m.cols}, DType::f32)});
    nbytes_ += batches_[batch].units.back().momentum.nbytes();
  }
}

UpdateStats Muon::step(const ExecContext& ctx, double lr, double gradient_scale) {
  UpdateStats stats;
  for (const Batch& batch : batches_) {
    const UpdateStats own = step_batch(ctx, batch, lr * options_.lr_scale, gradient_scale);
    stats.sum_squares += own.sum_squares;
    stats.n_elements += own.n_elements;
  }
  for (const auto& [begin, end] : std::exchange(newton_schulz_spans_, {})) {
    newton_schulz_seconds_ += cuda::Queue::seconds_between(*begin, *end);
  }
  return stats;
}

void Muon::newton_schulz(const ExecContext& ctx, const Tensor& x) {
  const Tensor workspace =
      ctx.empty({newton_schulz_workspace(x.dim(0), x.dim(1), x.dim(2))}, DType::f32);
  const NewtonSchulzArgs args{x, workspace, options_.schedule};
  if (cuda::Queue* gpu = memory_.gpu()) {  // which only takes the order
    Mark begin = gpu->mark();
    ctx.launch(kNewtonSchulz, DType::f32, args);
    newton_schulz_spans_.emplace_back(std::move(begin), gpu->mark());
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  ctx.launch(kNewtonSchulz, DType::f32, args);
  newton_schulz_seconds_ +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

UpdateStats Muon::step_batch(const ExecContext& ctx, const Batch& batch, double lr,
                             double gradient_scale) {
  const auto n = static_cast<std::int64_t>(batch.units.size());
  std::vector<MuonMatrix> matrices;
  for (const Unit& u : batch.units) {
    matrices.push_back({u.parameter->value.slice(u.rows.begin, u.rows.end),
                        u.parameter->gradient.slice(u.rows.begin, u.rows.end), u.momentum});
  }
  const Tensor x = ctx.empty({n, batch.rows, batch.cols}, DType::f32);
  ctx.launch(kMuonMomentum, DType::f32,
             MuonMomentumArgs{x, matrices, static_cast<float>(options_.momentum),
                              static_cast<float>(gradient_scale)});
  newton_schulz(ctx, x);
  std::vector<double> sums(matrices.size());
  ctx.launch(kMuonUpdate, DType::f32,
             MuonUpdateArgs{x, matrices, lr, options_.weight_decay, options_.gamma, sums});
  UpdateStats stats{0.0, n * batch.rows * batch.cols};
  for (const double sum : sums) stats.sum_squares += sum * lr * lr;
  return stats;
}

std::vector<NamedTensor> Muon::state() const {
  std::map<std::size_t, const Unit*> in_order;
  for (const Batch& batch : batches_) {
    for (const Unit& u : batch.units) in_order.emplace(u.matrix, &u);
  }
  std::vector<NamedTensor> all;
  for (const auto& [matrix, u] : in_order) {
    all.push_back({state_name(u->parameter->info, u->rows), u->momentum, memory_.gpu()});
  }
  return all;
}

std::string Muon::state_name(const ParameterInfo& info, RowRange rows) {
  std::string name = "muon.momentum." + info.name;
  if (info.matrices.size() > 1) name += fmt::format(":{}-{}", rows.begin, rows.end);
  return name;
}

std::int64_t Muon::n_matrices() const {
  std::int64_t n = 0;
  for (const Batch& batch : batches_) n += static_cast<std::int64_t>(batch.units.size());
  return n;
}

}  // namespace hadal::train
