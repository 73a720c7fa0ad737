#include "train/step_flops.h"

#include <gtest/gtest.h>

#include "model/accounting.h"
#include "train/memory_plan.h"
#include "train/small_config.h"

namespace hadal::train {
namespace {

// While an indexer selects: three times inference, token by token.
TEST(StepFlops, AreThriceThoseOfInference) {
  const model::Config config = test::small_config();
  StepFlops flops(config, AttentionPhase::sparse, false);
  double forward = 0;
  for (std::int64_t context = 1; context <= 100; ++context) {
    forward += model::token_flops(config, context).plain();
  }
  EXPECT_NEAR(flops.of_sequence(100), 3 * forward, 1e-9 * forward);
  EXPECT_EQ(flops.of_sequence(0), 0);
  EXPECT_LT(flops.of_sequence(50), flops.of_sequence(100) / 2);  // longer contexts cost more
}

// Dense: a query of a CSA layer sees all of its entries, and nobody scores them.
TEST(StepFlops, KnowWhatAPhaseAttendsTo) {
  model::Config config = test::small_config();
  const auto of = [&](AttentionPhase phase, std::int64_t n_tokens = 200) {
    return StepFlops(config, phase, false).of_sequence(n_tokens);
  };
  // Of up to 500 entries 4 are kept: that saves more than the indexer costs.
  EXPECT_GT(of(AttentionPhase::dense, 2000), of(AttentionPhase::sparse, 2000));
  // Two CSA layers: with all entries kept, the indexer is what is left.
  config.index_topk = 1000;
  const double d = 32, r = 24, heads = 2, width = 16, rows = 200;
  const double scores = 2 * heads * width * 4 * (49.0 * 50 / 2) + 2 * heads * width * 50;
  const double matrices = 2 * rows * (heads * width * r + heads * d + 2 * 2 * width * d);
  EXPECT_NEAR(of(AttentionPhase::sparse) - of(AttentionPhase::dense), 3 * 2 * (scores + matrices),
              1e-6 * of(AttentionPhase::dense));
}

TEST(StepFlops, CountTheMtpBlockAsALayerAndAHead) {
  const model::Config config = test::small_config();
  StepFlops with(config, AttentionPhase::dense, true),
      without(config, AttentionPhase::dense, false);
  EXPECT_GT(with.of_sequence(64) - without.of_sequence(64), 3 * 64 * 2.0 * 96 * 32);
  EXPECT_LT(with.of_sequence(64), 2 * without.of_sequence(64));
}

TEST(StepFlops, KnowThePublishedPeakOfHopper) {
  cuda::DeviceInfo gpu;
  gpu.major = 9, gpu.n_multiprocessors = 132;
  EXPECT_NEAR(*published_peak(gpu, Compute::bf16), 989e12, 1e12);
  EXPECT_FALSE(published_peak(gpu, Compute::f32).has_value());
  gpu.major = 8;
  EXPECT_FALSE(published_peak(gpu, Compute::bf16).has_value());
}

TEST(MemoryPlan, SaysWhatAGpuHasAndWhetherItIsEnough) {
  MemoryPlan plan;
  plan.weights = plan.gradients = std::size_t{8} << 30;
  cuda::DeviceInfo gpu;
  gpu.name = "NVIDIA H200";
  gpu.total_bytes = std::size_t{141} << 30, gpu.free_bytes = std::size_t{64} << 30;
  EXPECT_EQ(to_string(plan).find("H200"), std::string::npos);
  EXPECT_NE(to_string(plan, &gpu).find("64.00 GiB   of 141.00 GiB on GPU 0, NVIDIA H200"),
            std::string::npos)
      << to_string(plan, &gpu);
  EXPECT_EQ(to_string(plan, &gpu).find("too little"), std::string::npos);
  gpu.free_bytes = std::size_t{12} << 30;
  EXPECT_NE(to_string(plan, &gpu).find("too little"), std::string::npos);
}

}  // namespace
}  // namespace hadal::train
