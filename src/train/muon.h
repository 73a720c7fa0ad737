// Muon: momentum whose singular values are all brought to 1.  Source: DeepSeek-V4 §2.4.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/newton_schulz.h"
#include "ops/exec_context.h"
#include "train/parameters.h"

namespace hadal::train {

struct MuonOptions {
  double momentum = 0.95;
  double weight_decay = 0.1;  // times the learning rate
  double gamma = 0.18;        // RMS of an update over its learning rate; other code has 0.2 or 1
  double lr_scale = 1.0;      // on the shared learning rate
  std::vector<NewtonSchulzStep> schedule{kHybridSchedule.begin(), kHybridSchedule.end()};
};

struct UpdateStats {
  double sum_squares = 0;  // of the updates, decay left out, learning rate included
  std::int64_t n_elements = 0;
  [[nodiscard]] double rms() const;  // 0 when nothing was updated
};

class Muon {
 public:
  // `owned`: which of store.matrices() this rank updates; empty: all. Matrices of one shape, turned
  // or not, are orthogonalised together. The store must outlive this.
  Muon(const ParameterStore& store, MuonOptions options, std::span<const std::uint8_t> owned = {});

  // W <- W (1 - lr decay) - lr gamma sqrt(max(rows, cols)) polar(momentum), of gradients times
  // gradient_scale. The same bits on any number of threads and for any division into ranks.
  UpdateStats step(const ExecContext& ctx, double lr, double gradient_scale);

  // Momentum by logical matrix, in file order. Zero before the first step.
  [[nodiscard]] std::vector<NamedTensor> state() const;
  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }  // of it
  // "muon.momentum.NAME", with ":BEGIN-END" where only those rows are one matrix.
  [[nodiscard]] static std::string state_name(const ParameterInfo& info, RowRange rows);
  [[nodiscard]] double newton_schulz_seconds() const { return newton_schulz_seconds_; }  // in total
  [[nodiscard]] std::int64_t n_matrices() const;

 private:
  struct Unit {
    std::size_t matrix;  // its place in store.matrices()
    const Parameter* parameter;
    RowRange rows;
    Tensor momentum;
  };
  struct Batch {
    std::int64_t rows, cols;  // rows <= cols
    std::vector<Unit> units;
  };
  UpdateStats step_batch(const ExecContext& ctx, const Batch& batch, double lr,
                         double gradient_scale);
  void newton_schulz(const ExecContext& ctx, const Tensor& x);

  MuonOptions options_;
  RunMemory memory_;
  std::vector<Batch> batches_;
  std::size_t nbytes_ = 0;
  double newton_schulz_seconds_ = 0;
  // Of a step on a GPU, until it is over.
  using Mark = std::shared_ptr<cuda::Queue::Mark>;
  std::vector<std::pair<Mark, Mark>> newton_schulz_spans_;
};

}  // namespace hadal::train
