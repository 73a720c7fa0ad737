#include "train/balance.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/error.h"
#include "core/rng.h"

namespace hadal::train {
namespace {

using Load = std::vector<std::int64_t>;

TEST(BalanceTest, BiasFollowsTheSignOfWhatIsMissing) {
  std::vector<float> bias{0, 1, 2, 3};
  update_bias(bias, Load{0, 4, 8, 4}, 0.5f);
  EXPECT_EQ(bias, (std::vector<float>{0.5f, 1, 1.5f, 3}));
}

// The mean is 10/3: 3 is below, 4 above, whatever it would be rounded to.
TEST(BalanceTest, TheMeanIsExact) {
  std::vector<float> bias(3);
  update_bias(bias, Load{3, 3, 4}, 1);
  EXPECT_EQ(bias, (std::vector<float>{1, 1, -1}));
  const std::int64_t big = std::int64_t{1} << 40;
  bias.assign(3, 0);
  update_bias(bias, Load{big, big + 1, big + 2}, 1);
  EXPECT_EQ(bias, (std::vector<float>{1, 0, -1}));
}

TEST(BalanceTest, NobodyChosenMovesNothing) {
  std::vector<float> bias{1, 2};
  update_bias(bias, Load{0, 0}, 1);
  EXPECT_EQ(bias, (std::vector<float>{1, 2}));
}

TEST(BalanceTest, RefusesAnotherNumberOfExperts) {
  std::vector<float> bias(3);
  EXPECT_THROW(update_bias(bias, Load{1, 2}, 1), Error);
}

// Experts of unequal appeal become even: the loop that training closes.
TEST(BalanceTest, EvensOutASkewedRouter) {
  const std::vector<float> appeal{0.9f, 0.7f, 0.4f, 0.2f};
  std::vector<float> bias(4);
  Load load;
  for (int step = 0; step < 400; ++step) {
    load.assign(4, 0);
    Rng rng(1);
    for (int token = 0; token < 500; ++token) {
      std::size_t best = 0;
      float peak = -1e9f;
      for (std::size_t e = 0; e < 4; ++e) {
        const float score = appeal[e] + bias[e] + 0.3f * rng.next_normal();
        if (score > peak) peak = score, best = e;
      }
      ++load[best];
    }
    if (step == 0) {
      EXPECT_GT(load_balance(load).max_over_mean, 2);
    }
    update_bias(bias, load, 0.003f);
  }
  EXPECT_LT(load_balance(load).max_over_mean, 1.1);
  EXPECT_EQ(load_balance(load).n_dead, 0);
}

TEST(BalanceTest, CountsThePeakAndTheDead) {
  const LoadBalance b = load_balance(Load{0, 6, 2, 0});
  EXPECT_DOUBLE_EQ(b.max_over_mean, 3);
  EXPECT_EQ(b.n_dead, 2);
  EXPECT_EQ(load_balance(Load{0, 0}).n_dead, 2);
  EXPECT_EQ(load_balance(Load{0, 0}).max_over_mean, 0);
}

}  // namespace
}  // namespace hadal::train
