#include "train/progress_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/run_fixture.h"

namespace hadal::train {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(ProgressMeter, SaysWhereTheRunIsAndWhenItEnds) {
  ProgressMeter meter(1'000'000);
  EXPECT_EQ(meter.line(200), "");
  for (int i = 1; i <= 100; ++i) meter.add(made_step(i, 0));
  EXPECT_EQ(meter.line(200),
            "step 100 · 100k of 1.00M tokens (10.0 %) · loss 8.0000 · lr 1.00e-03 · "
            "2.00k tokens/s · 7m30s left · 1.0 MiB");
}

TEST(ProgressMeter, LeavesOutTheLeastImportantFirst) {
  ProgressMeter meter(1'000'000);
  meter.add(made_step(100));
  EXPECT_THAT(meter.line(80), Not(HasSubstr("MiB")));
  EXPECT_THAT(meter.line(80), HasSubstr("left"));
  EXPECT_THAT(meter.line(45), HasSubstr("loss"));
  EXPECT_EQ(meter.line(1), "step 100");
}

TEST(ProgressMeter, RatesFollowWhatChanges) {
  ProgressMeter meter(0);
  for (int i = 1; i <= 50; ++i) meter.add(made_step(i));
  for (int i = 51; i <= 250; ++i) {
    StepRecord r = made_step(i);
    r.tokens_per_second = 1000, r.seconds.step = 1;
    meter.add(r);
  }
  EXPECT_NEAR(meter.tokens_per_second(), 1000, 10);
  EXPECT_FALSE(meter.seconds_left());  // of no known end
  EXPECT_THAT(meter.line(200), HasSubstr("250k tokens"));
}

TEST(ProgressMeter, ForgetsTheLossThatWasRolledBack) {
  ProgressMeter meter(0);
  StepRecord bad = made_step(10);
  bad.loss = 1000;
  meter.add(bad);
  StepRecord back = made_step(5);
  back.loss = 4;
  meter.add(back);
  EXPECT_EQ(meter.loss(), 4);
  back.step = 6, back.loss = std::nan("");
  meter.add(back);
  EXPECT_EQ(meter.loss(), 4);
}

TEST(ProgressMeter, TheWarmUpOfTheIndexerShowsItsLoss) {
  ProgressMeter meter(1'000'000);
  StepRecord r = made_step(3);
  r.phase = "indexer_warmup", r.loss = std::nan(""), r.index_loss = 0.25;
  meter.add(r);
  EXPECT_THAT(meter.line(200), HasSubstr("indexer loss 0.2500"));
}

}  // namespace
}  // namespace hadal::train
