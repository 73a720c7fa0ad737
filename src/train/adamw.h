// AdamW, for what is no matrix and for the indexer's warm-up.  Source: DeepSeek-V4 §4.2.2.
#pragma once

#include <span>
#include <vector>

#include "ops/exec_context.h"
#include "train/muon.h"
#include "train/parameters.h"

namespace hadal::train {

struct AdamwOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-20;
  double weight_decay = 0.1;  // times the learning rate, where a parameter decays
  double lr_scale = 1.0;      // on the shared learning rate
};

class Adamw {
 public:
  // Updates these parameters of the store, which must outlive this. None may be frozen.
  Adamw(const ParameterStore& store, AdamwOptions options, std::span<const VariableId> parameters);

  UpdateStats step(const ExecContext& ctx, double lr, double gradient_scale);

  // "adamw.mean.NAME", "adamw.variance.NAME" and "adamw.steps" (i64 [1]: steps taken).
  [[nodiscard]] std::vector<NamedTensor> state() const;
  [[nodiscard]] std::size_t nbytes() const { return nbytes_; }  // of it

 private:
  struct Unit {
    const Parameter* parameter;
    Tensor mean, variance;
  };
  AdamwOptions options_;
  RunMemory memory_;
  std::vector<Unit> units_;
  Tensor steps_;  // on the host
  std::size_t nbytes_ = 0;
};

}  // namespace hadal::train
