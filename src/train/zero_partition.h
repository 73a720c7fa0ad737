// Which rank updates which matrix. Matrices stay whole: a polar factor has no parts.
// Source: DeepSeek-V4 §3.4.1; training.md §1.6.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "train/parameters.h"

namespace hadal::train {

// Floating point operations of Newton-Schulz on one matrix, without the symmetric shortcut.
[[nodiscard]] double newton_schulz_flops(std::int64_t rows, std::int64_t cols,
                                         std::int64_t n_steps = 10);

struct RankLoad {
  std::int64_t n_matrices = 0, n_elements = 0;
  double flops = 0;
};

struct ZeroPartition {
  std::vector<int> rank_of;  // of each matrix, by its place in the input
  std::vector<RankLoad> ranks;
  // Every rank's bucket is padded to the largest one, so that collectives are regular.
  [[nodiscard]] std::int64_t bucket_elements() const;
  [[nodiscard]] double padding() const;    // elements of padding over elements of matrices
  [[nodiscard]] double imbalance() const;  // largest flops over mean flops
  // For Muon: 1 where the matrix is this rank's.
  [[nodiscard]] std::vector<std::uint8_t> owned_by(int rank) const;
};

// The dearest matrix first, each to the rank with the least to do so far; ties to the matrix that
// comes first and to the lower rank. A pure function, the same on every rank.
[[nodiscard]] ZeroPartition partition_matrices(std::span<const LogicalMatrix> matrices,
                                               int n_ranks);

// The largest divisor of `world` that divides these matrices with at most so much padding; ranks
// beyond it repeat the same updates. 1 always does.
[[nodiscard]] int zero_group_size(std::span<const LogicalMatrix> matrices, int world,
                                  double max_padding = 0.1);

// Experts are alike: rank r of n takes matrices [r * per_rank, (r + 1) * per_rank) of a kind, and
// the last ranks may have fewer. Kinds in this order: w2, w3, w1 of all layers and experts.
struct ExpertCut {
  std::vector<std::size_t> order;  // places in `layout`, kind by kind
  std::int64_t per_kind = 0;       // matrices of one kind
  std::int64_t per_rank = 0;       // of one kind, padding included
};
[[nodiscard]] ExpertCut cut_experts(std::span<const ParameterInfo> layout, int n_ranks);

}  // namespace hadal::train
