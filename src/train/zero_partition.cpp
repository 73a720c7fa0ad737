#include "train/zero_partition.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "core/error.h"

namespace hadal::train {

double newton_schulz_flops(std::int64_t rows, std::int64_t cols, std::int64_t n_steps) {
  const auto a = static_cast<double>(std::min(rows, cols));
  const auto b = static_cast<double>(std::max(rows, cols));
  return static_cast<double>(n_steps) * (4.0 * a * a * b + 2.0 * a * a * a);
}

std::int64_t ZeroPartition::bucket_elements() const {
  std::int64_t largest = 0;
  for (const RankLoad& r : ranks) largest = std::max(largest, r.n_elements);
  return largest;
}

double ZeroPartition::padding() const {
  std::int64_t used = 0;
  for (const RankLoad& r : ranks) used += r.n_elements;
  if (used == 0) return 0.0;
  const auto padded = static_cast<double>(bucket_elements()) * static_cast<double>(ranks.size());
  return padded / static_cast<double>(used) - 1.0;
}

double ZeroPartition::imbalance() const {
  double sum = 0.0, largest = 0.0;
  for (const RankLoad& r : ranks) sum += r.flops, largest = std::max(largest, r.flops);
  return sum == 0.0 ? 1.0 : largest * static_cast<double>(ranks.size()) / sum;
}

std::vector<std::uint8_t> ZeroPartition::owned_by(int rank) const {
  std::vector<std::uint8_t> owned;
  for (const int r : rank_of) owned.push_back(r == rank ? 1 : 0);
  return owned;
}

ZeroPartition partition_matrices(std::span<const LogicalMatrix> matrices, int n_ranks) {
  HADAL_CHECK(n_ranks >= 1);
  const auto flops = [&](std::size_t i) {
    return newton_schulz_flops(matrices[i].n_rows(), matrices[i].cols);
  };
  std::vector<std::size_t> order(matrices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return flops(a) > flops(b); });
  ZeroPartition partition;
  partition.rank_of.resize(matrices.size());
  partition.ranks.resize(static_cast<std::size_t>(n_ranks));
  for (const std::size_t i : order) {
    const auto least =
        std::min_element(partition.ranks.begin(), partition.ranks.end(),
                         [](const RankLoad& a, const RankLoad& b) { return a.flops < b.flops; });
    partition.rank_of[i] = static_cast<int>(least - partition.ranks.begin());
    least->n_matrices += 1;
    least->n_elements += matrices[i].n_rows() * matrices[i].cols;
    least->flops += flops(i);
  }
  return partition;
}

int zero_group_size(std::span<const LogicalMatrix> matrices, int world, double max_padding) {
  HADAL_CHECK(world >= 1);
  for (int size = world; size > 1; --size) {
    if (world % size != 0) continue;
    if (partition_matrices(matrices, size).padding() <= max_padding) return size;
  }
  return 1;
}

ExpertCut cut_experts(std::span<const ParameterInfo> layout, int n_ranks) {
  HADAL_CHECK(n_ranks >= 1);
  ExpertCut cut;
  for (const std::string_view kind : {".w2.weight", ".w3.weight", ".w1.weight"}) {
    for (std::size_t i = 0; i < layout.size(); ++i) {
      if (layout[i].role == model::WeightRole::expert && layout[i].name.ends_with(kind)) {
        cut.order.push_back(i);
      }
    }
  }
  cut.per_kind = static_cast<std::int64_t>(cut.order.size()) / 3;
  cut.per_rank = (cut.per_kind + n_ranks - 1) / n_ranks;
  return cut;
}

}  // namespace hadal::train
