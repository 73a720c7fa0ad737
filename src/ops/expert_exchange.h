// Experts on several ranks: tokens travel to them, their results come back.
// Source: training.md §6.5, §6.7.
#pragma once

#include <vector>

#include "kernels/moe.h"
#include "ops/exec_context.h"
#include "parallel/communicator.h"

namespace hadal::ops {

// Experts [begin, end) are one rank's; ranks have them in order, their numbers within one.
struct ExpertRange {
  std::int64_t begin, end;
};
[[nodiscard]] ExpertRange experts_of_rank(std::int64_t n_experts, int rank, int n_ranks);
[[nodiscard]] int rank_of_expert(std::int64_t expert, std::int64_t n_experts, int n_ranks);

// Where the assignments (token, slot) of one call travel. A rank works on what it got in the order
// of (source rank, token, slot), and a token adds what came back in the order of its experts: the
// sums of kernels/moe.h, bit for bit, in both directions. Gradients of experts are complete: all
// ranks' tokens are in them.
class ExpertExchange {
 public:
  // experts  [n_tokens, topk] i32. All ranks construct, and then call the rest, alike.
  // Throws Error invalid_argument on an expert outside [0, n_experts).
  ExpertExchange(parallel::Communicator& ranks, const Tensor& experts, std::int64_t n_experts);

  // Those of this rank, of all.
  [[nodiscard]] std::span<const ExpertWeights> local(std::span<const ExpertWeights> routed) const;

  // As the kernels of those arguments, with `routed` and `drouted` only the local ones; experts as
  // constructed with. `clamps` counts what this rank computes.
  void forward(const ExecContext& ctx, const MoeExpertsArgs& args) const;
  void backward(const ExecContext& ctx, const MoeExpertsBackwardArgs& args) const;

 private:
  // Rows of tokens, one an assignment, to the ranks of the experts: [n_received, row].
  [[nodiscard]] Tensor to_experts(const ExecContext& ctx, const TensorView& rows) const;
  // [n_tokens, topk] f32 -> [n_received, 1]
  [[nodiscard]] Tensor weights_to_experts(const ExecContext& ctx, const TensorView& weights) const;
  // And back, [n_tokens * topk, row] by assignment.
  [[nodiscard]] Tensor from_experts(const ExecContext& ctx, const Tensor& rows) const;
  // y = the rows of a token's assignments, ascending by expert, then those of `shared`; in f32.
  void combine(const ExecContext& ctx, const TensorView& y, const Tensor& rows,
               std::span<const Tensor> shared) const;

  parallel::Communicator* ranks_;
  ExpertRange here_;
  std::int64_t topk_;
  std::vector<std::int32_t> order_;      // assignments as they are sent
  std::vector<std::int32_t> ascending_;  // [n_tokens, topk] assignments of a token by expert
  std::vector<std::int64_t> n_sent_, n_received_;  // rows, by rank
  std::int64_t n_rows_ = 0;                        // received
  Tensor experts_;                                 // [n_rows, 1] i32, counted from here_.begin
};

}  // namespace hadal::ops
