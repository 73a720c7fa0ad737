#include "train/zero_partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace hadal::train {
namespace {

using ::testing::ElementsAre;

std::vector<ParameterInfo> flash_layout() {
  return parameter_layout(model::load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json"));
}

std::vector<LogicalMatrix> dense_matrices(const std::vector<ParameterInfo>& layout) {
  std::vector<LogicalMatrix> all = logical_matrices(layout);
  std::erase_if(all, [](const LogicalMatrix& m) { return m.expert; });
  return all;
}

LogicalMatrix matrix(VariableId id, std::int64_t rows, std::int64_t cols) {
  return {id, {0, rows}, cols, false};
}

TEST(ZeroPartition, CostsFollowTheShorterSide) {
  EXPECT_EQ(newton_schulz_flops(2, 3), 10 * (4 * 4 * 3 + 2 * 8));
  EXPECT_EQ(newton_schulz_flops(3, 2), newton_schulz_flops(2, 3));
  EXPECT_EQ(newton_schulz_flops(2, 3, 5), newton_schulz_flops(2, 3) / 2);
}

TEST(ZeroPartition, TheDearestGoFirstAndTiesToTheLowerIdAndRank) {
  const LogicalMatrix all[] = {matrix(1, 4, 4), matrix(2, 8, 8), matrix(3, 4, 4), matrix(4, 4, 4),
                               matrix(5, 4, 4)};
  // 8x8 costs eight 4x4: the other rank gets all four.
  EXPECT_THAT(partition_matrices(all, 2).rank_of, ElementsAre(1, 0, 1, 1, 1));
  const LogicalMatrix same[] = {matrix(1, 4, 4), matrix(2, 4, 4), matrix(3, 4, 4)};
  EXPECT_THAT(partition_matrices(same, 2).rank_of, ElementsAre(0, 1, 0));
  const ZeroPartition p = partition_matrices(same, 2);
  EXPECT_EQ(p.bucket_elements(), 32);
  EXPECT_DOUBLE_EQ(p.padding(), 64.0 / 48.0 - 1.0);
  EXPECT_DOUBLE_EQ(p.imbalance(), 2.0 / 1.5);
  EXPECT_THAT(p.owned_by(1), ElementsAre(0, 1, 0));
}

TEST(ZeroPartition, OneRankHasAllAndMoreRanksThanMatricesLeaveSomeIdle) {
  const LogicalMatrix all[] = {matrix(1, 4, 6), matrix(2, 2, 3)};
  EXPECT_THAT(partition_matrices(all, 1).rank_of, ElementsAre(0, 0));
  EXPECT_EQ(partition_matrices(all, 1).padding(), 0.0);
  EXPECT_EQ(partition_matrices(all, 4).ranks[3].n_matrices, 0);
  EXPECT_EQ(partition_matrices({}, 3).padding(), 0.0);
  EXPECT_EQ(partition_matrices({}, 3).imbalance(), 1.0);
}

TEST(ZeroPartition, FlashIsBalancedAndTheSameEveryTime) {
  const std::vector<ParameterInfo> layout = flash_layout();
  const std::vector<LogicalMatrix> dense = dense_matrices(layout);
  for (const int n_ranks : {2, 8, 32}) {
    const ZeroPartition p = partition_matrices(dense, n_ranks);
    EXPECT_EQ(p.rank_of, partition_matrices(dense, n_ranks).rank_of);
    EXPECT_LT(p.imbalance(), 1.05) << n_ranks;
    EXPECT_LT(p.padding(), 0.25) << n_ranks;
    std::int64_t n = 0, elements = 0, wanted = 0;
    for (const RankLoad& r : p.ranks) n += r.n_matrices, elements += r.n_elements;
    for (const LogicalMatrix& m : dense) wanted += m.n_rows() * m.cols;
    EXPECT_EQ(n, static_cast<std::int64_t>(dense.size()));
    EXPECT_EQ(elements, wanted);
  }
}

TEST(ZeroPartition, GroupSizeIsTheLargestDivisorWithLittlePadding) {
  std::vector<LogicalMatrix> all;
  for (VariableId id = 1; id <= 12; ++id) all.push_back(matrix(id, 16, 16));
  EXPECT_EQ(zero_group_size(all, 4), 4);
  EXPECT_EQ(zero_group_size(all, 12), 12);
  EXPECT_EQ(zero_group_size(all, 8), 4);  // 8 ranks: 16 places for 12
  EXPECT_EQ(zero_group_size(all, 24), 12);
  EXPECT_EQ(zero_group_size(all, 7), 1);
}

TEST(ZeroPartition, ExpertsAreCutKindByKindAndNeverSplit) {
  const std::vector<ParameterInfo> layout = flash_layout();
  const ExpertCut cut = cut_experts(layout, 32);
  EXPECT_EQ(cut.per_kind, 44 * 256);
  EXPECT_EQ(cut.per_rank, 44 * 256 / 32);
  ASSERT_EQ(cut.order.size(), 3u * 44 * 256);
  EXPECT_EQ(layout[cut.order[0]].name, "layers.0.ffn.experts.0.w2.weight");
  EXPECT_EQ(layout[cut.order[44 * 256]].name, "layers.0.ffn.experts.0.w3.weight");
  EXPECT_EQ(layout[cut.order.back()].name, "mtp.0.ffn.experts.255.w1.weight");
  EXPECT_EQ(std::set<std::size_t>(cut.order.begin(), cut.order.end()).size(), cut.order.size());
  EXPECT_EQ(cut_experts(layout, 7).per_rank, 1610);  // 11264 / 7 = 1609.1
}

}  // namespace
}  // namespace hadal::train
