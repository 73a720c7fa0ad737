// One step on all parameters: measure the gradients, clip them, give each group to its optimizer.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/adamw.h"
#include "train/muon.h"
#include "train/parameters.h"

namespace hadal::train {

struct OptimizerOptions {
  MuonOptions muon;
  AdamwOptions adamw;
  double clip_norm = 1.0;  // of all gradients together; 0: never clip.  Source: training.md §1.4
};

// Which parameters learn.
enum class Trained : std::uint8_t {
  all,           // but the frozen ones, by their groups
  indexer_only,  // the indexers' warm-up: theirs alone, all on AdamW.  Source: training.md §2.3
};

// The first element of the first gradient, in file order, that is NaN or infinite.
struct NonFiniteGradient {
  std::string name;
  std::int64_t index;  // flat
  float value;
};

struct GradientReport {
  std::vector<double>
      sums;  // of squares, by parameter in file order; 0 for those that do not learn
  std::optional<NonFiniteGradient> non_finite;
  [[nodiscard]] double norm() const;  // of all of them; a tree of fixed order over `sums`
};

struct StepStats {
  double gradient_scale = 1.0;  // below 1: clipped
  UpdateStats muon, adamw;
  double seconds = 0, newton_schulz_seconds = 0;
};

class Optimizer {
 public:
  // `owned`: which of store.matrices() this rank updates with Muon (ZeRO); empty: all. AdamW's
  // parameters are updated on every rank alike. The store must outlive this.
  // Throws Error invalid_argument naming an option that makes no sense.
  Optimizer(const ParameterStore& store, OptimizerOptions options, Trained trained = Trained::all,
            std::span<const std::uint8_t> owned = {});

  // Changes nothing. When the report names a non-finite gradient, do not step.
  [[nodiscard]] GradientReport measure(const ExecContext& ctx) const;

  // Updates the weights in place with the gradients in the store. `gradient_norm`: of all of them
  // together, as measure() says, or over ranks; what exceeds clip_norm scales them down.
  StepStats step(const ExecContext& ctx, double lr, double gradient_norm);

  // Everything besides weights that the next step depends on.
  [[nodiscard]] std::vector<NamedTensor> state() const;
  [[nodiscard]] std::size_t nbytes() const;  // of it

 private:
  const ParameterStore* store_;
  OptimizerOptions options_;
  std::vector<VariableId> learning_;  // in file order
  std::optional<Muon> muon_;
  std::optional<Adamw> adamw_;
};

}  // namespace hadal::train
