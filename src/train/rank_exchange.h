// What the ranks of a training run tell each other between backward pass and next step.
// Source: DeepSeek-V4 §3.4.1; training.md §1.6, §6.5.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "train/loss.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/step_watch.h"

namespace hadal::train {

// Which rank updates which matrix with Muon, by its place in `matrices`. Dense ones by knapsack
// (partition_matrices). Experts: with expert_parallel those of the rank that runs them, else an
// even cut of all down, then up, then gate projections (cut_experts). A pure function.
[[nodiscard]] std::vector<int> matrix_owners(const ParameterStore& store, int n_ranks,
                                             bool expert_parallel);

class RankExchange {
 public:
  // `store` and `ranks` must outlive this. Throws Error invalid_argument when there are fewer
  // experts than ranks to divide them over.
  RankExchange(const ParameterStore& store, parallel::Communicator& ranks, bool expert_parallel);

  // For Optimizer: what this rank updates; empty: all.
  [[nodiscard]] std::vector<std::uint8_t> owned() const;
  // Parameters, by file order, of experts that other ranks run; 1: this rank's value may be old.
  [[nodiscard]] std::span<const std::uint8_t> foreign() const { return foreign_; }

  // Adds up what every rank's backward pass left in the gradients. Those of experts that are
  // divided over the ranks are complete already.
  void sum_gradients();
  void sum(LossSums& sums);
  void sum(StepWatch& watch);
  void sum(UpdateStats& stats);
  // After measure(): sums and the first non-finite gradient of all ranks' experts.
  void merge(GradientReport& report);

  // Values that one rank updated, to all. Without those of experts that are divided: nobody else
  // runs them.
  void share_values();
  // And those.
  void share_experts();
  // What the owners have, everywhere: `tensor_of(matrix)` is read on its owner, written elsewhere;
  // an empty tensor on all ranks is passed over.
  void share_matrices(const std::function<Tensor(std::size_t)>& tensor_of);

  [[nodiscard]] bool divides_experts() const { return expert_parallel_; }
  [[nodiscard]] std::span<const int> owners() const { return owners_; }

 private:
  void share(std::span<const std::size_t> matrices,
             const std::function<Tensor(std::size_t)>& tensor_of);
  [[nodiscard]] bool is_divided(const ParameterInfo& info) const;
  [[nodiscard]] Tensor value_of(std::size_t matrix) const;

  const ParameterStore* store_;
  parallel::Communicator* ranks_;
  bool expert_parallel_;
  std::vector<int> owners_;
  std::vector<std::size_t> shared_, divided_;  // matrices
  std::vector<std::uint8_t> foreign_;
};

}  // namespace hadal::train
