#include "train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"

namespace hadal::train {
namespace {

using ::testing::HasSubstr;

// micro of training.md §7: 300 M tokens in five stages.
ScheduleConfig micro() {
  ScheduleConfig c;
  c.total_tokens = 300'000'000;
  c.lr = {.peak = 2e-3, .end = 2e-4, .warmup_steps = 150, .decay_fraction = 0.2};
  c.batch = {.first_tokens = 32768, .tokens = 131072, .ramp_fraction = 0.1};
  c.stages = {{256, 0.40, false},
              {1024, 0.25, false},
              {1024, 0.15, true},
              {4096, 0.15, true},
              {16384, 0.05, true}};
  c.indexer = {.warmup_steps = 200, .warmup_lr = 1e-3, .loss_weight = 1.0};
  c.bias_speed = 3e-3;
  return c;
}

Progress at(const ScheduleConfig& c, double fraction, std::int64_t step = 100000,
            std::int64_t indexer_steps = 200) {
  return {static_cast<std::int64_t>(fraction * static_cast<double>(c.total_tokens)), step,
          indexer_steps};
}

TEST(Schedule, LearningRateAtItsCorners) {
  const ScheduleConfig c = micro();
  EXPECT_DOUBLE_EQ(learning_rate(c, {0, 0, 0}), 2e-3 / 150);
  EXPECT_DOUBLE_EQ(learning_rate(c, {1000, 74, 0}), 2e-3 / 2);
  EXPECT_DOUBLE_EQ(learning_rate(c, {1000, 149, 0}), 2e-3);
  EXPECT_DOUBLE_EQ(learning_rate(c, {1000, 150, 0}), 2e-3);
  EXPECT_DOUBLE_EQ(learning_rate(c, at(c, 0.799)), 2e-3);
  EXPECT_DOUBLE_EQ(learning_rate(c, at(c, 0.8)), 2e-3);
  EXPECT_NEAR(learning_rate(c, at(c, 0.9)), 1.1e-3, 1e-12);  // half way down
  EXPECT_NEAR(learning_rate(c, at(c, 0.95)), 2e-4 + 1.8e-3 * 0.5 * (1 - std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(learning_rate(c, at(c, 1.0)), 2e-4, 1e-15);
  EXPECT_NEAR(learning_rate(c, at(c, 1.5)), 2e-4, 1e-15);  // never up again
  ScheduleConfig flat = c;
  flat.lr.decay_fraction = 0.0, flat.lr.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate(flat, {0, 0, 0}), 2e-3);
  EXPECT_DOUBLE_EQ(learning_rate(flat, at(flat, 1.0)), 2e-3);
}

TEST(Schedule, BatchRampsInWholeSequences) {
  const ScheduleConfig c = micro();
  EXPECT_EQ(batch_tokens(c, at(c, 0.0), 256), 32768);
  EXPECT_EQ(batch_tokens(c, at(c, 0.05), 256), 81920);
  EXPECT_EQ(batch_tokens(c, at(c, 0.1), 256), 131072);
  EXPECT_EQ(batch_tokens(c, at(c, 0.9), 256), 131072);
  EXPECT_EQ(batch_tokens(c, at(c, 0.01), 1000), 42000);      // 42598.4 in whole sequences
  EXPECT_EQ(batch_tokens(c, at(c, 0.0), 1 << 20), 1 << 20);  // never less than one
  ScheduleConfig constant = c;
  constant.batch = {.first_tokens = 8192, .tokens = 8192, .ramp_fraction = 0.0};
  EXPECT_EQ(batch_tokens(constant, at(c, 0.0), 256), 8192);
}

TEST(Schedule, StagesBeginWhereTheFractionsSay) {
  const ScheduleConfig c = micro();
  const std::pair<double, std::int64_t> wanted[] = {
      {0.0, 256},  {0.3999999, 256},  {0.4, 1024},   {0.64, 1024}, {0.65, 1024},
      {0.8, 4096}, {0.9499999, 4096}, {0.95, 16384}, {1.0, 16384}, {1.2, 16384}};
  for (const auto& [fraction, length] : wanted) {
    EXPECT_EQ(plan_step(c, at(c, fraction)).sequence_length, length) << fraction;
  }
  EXPECT_EQ(stage_at(c, at(c, 0.65)), 2u);
}

TEST(Schedule, AttentionGoesFromDenseOverTheWarmupToSparse) {
  const ScheduleConfig c = micro();
  EXPECT_EQ(attention_phase(c, at(c, 0.64, 1000, 0)), AttentionPhase::dense);
  EXPECT_EQ(attention_phase(c, at(c, 0.65, 1000, 0)), AttentionPhase::indexer_warmup);
  EXPECT_EQ(attention_phase(c, at(c, 0.65, 1000, 199)), AttentionPhase::indexer_warmup);
  EXPECT_EQ(attention_phase(c, at(c, 0.65, 1000, 200)), AttentionPhase::sparse);
  EXPECT_EQ(attention_phase(c, at(c, 1.0, 1000, 200)), AttentionPhase::sparse);
  ScheduleConfig without = c;
  without.indexer.warmup_steps = 0;
  EXPECT_EQ(attention_phase(without, at(c, 0.65, 1000, 0)), AttentionPhase::sparse);

  const StepPlan warmup = plan_step(c, at(c, 0.65, 1000, 10));
  EXPECT_EQ(warmup.lr, 1e-3);
  EXPECT_EQ(warmup.mtp_weight, 0.0);
  EXPECT_EQ(warmup.bias_speed, 0.0);
  EXPECT_EQ(warmup.indexer_loss_weight, 1.0);
  EXPECT_EQ(plan_step(c, at(c, 0.3)).indexer_loss_weight, 0.0);
  EXPECT_EQ(plan_step(c, at(c, 0.7)).indexer_loss_weight, 1.0);
}

TEST(Schedule, MtpWeightFallsWithTheRateAndTheBiasRestsLast) {
  const ScheduleConfig c = micro();
  EXPECT_EQ(plan_step(c, at(c, 0.0, 0, 0)).mtp_weight, 0.3);
  EXPECT_EQ(plan_step(c, at(c, 0.799)).mtp_weight, 0.3);
  EXPECT_EQ(plan_step(c, at(c, 0.8)).mtp_weight, 0.1);
  EXPECT_EQ(plan_step(c, at(c, 0.949)).bias_speed, 3e-3);
  EXPECT_EQ(plan_step(c, at(c, 0.95)).bias_speed, 0.0);
  ScheduleConfig always = c;
  always.bias_stop_fraction = 0.0;
  EXPECT_EQ(plan_step(always, at(c, 0.999)).bias_speed, 3e-3);
}

TEST(Schedule, AWholeRunPassesEveryPhaseOnceAndEnds) {
  const ScheduleConfig c = micro();
  check(c);
  Progress p;
  std::int64_t n_steps = 0, longest = 0;
  std::vector<AttentionPhase> phases;
  while (!is_finished(c, p)) {
    const StepPlan plan = plan_step(c, p);
    if (phases.empty() || phases.back() != plan.phase) phases.push_back(plan.phase);
    EXPECT_EQ(plan.batch_tokens % plan.sequence_length, 0);
    EXPECT_GE(plan.sequence_length, longest);
    longest = plan.sequence_length;
    p = advance(p, plan, plan.batch_tokens);
    ASSERT_LT(++n_steps, 10000);
  }
  EXPECT_THAT(phases, ::testing::ElementsAre(AttentionPhase::dense, AttentionPhase::indexer_warmup,
                                             AttentionPhase::sparse));
  EXPECT_EQ(p.indexer_steps, 200);
  EXPECT_EQ(p.step + 200, n_steps);
  EXPECT_LT(p.tokens, c.total_tokens + c.batch.tokens);
}

TEST(Schedule, PublishedSizesKeepTheirPrecision) {
  ScheduleConfig c;
  c.total_tokens = 32'000'000'000'000;
  c.batch = {.first_tokens = 12'582'912, .tokens = 75'497'472, .ramp_fraction = 0.0};
  c.stages = {{4096, 0.02, false}, {16384, 0.01, false}, {65536, 0.87, true}, {1 << 20, 0.1, true}};
  check(c);
  EXPECT_EQ(plan_step(c, {0, 5000, 0}).batch_tokens, 75'497'472);
  EXPECT_EQ(plan_step(c, {31'999'999'999'999, 5000, 1000}).batch_tokens, 75'497'472);
  EXPECT_EQ(stage_at(c, {640'000'000'000 - 1, 0, 0}), 0u);
  EXPECT_EQ(stage_at(c, {640'000'000'000, 0, 0}), 1u);
}

TEST(Schedule, RefusesWhatCannotBe) {
  const auto message = [](auto&& change) -> std::string {
    ScheduleConfig c = micro();
    change(c);
    try {
      check(c);
    } catch (const Error& e) {
      EXPECT_EQ(e.code, ErrorCode::invalid_argument);
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(message([](ScheduleConfig&) {}), "no error");
  EXPECT_THAT(message([](auto& c) { c.total_tokens = 0; }), HasSubstr("total_tokens: 0"));
  EXPECT_THAT(message([](auto& c) { c.lr.end = 1.0; }), HasSubstr("sched.end: 1"));
  EXPECT_THAT(message([](auto& c) { c.lr.peak = NAN; }), HasSubstr("sched.peak: nan"));
  EXPECT_THAT(message([](auto& c) { c.batch.first_tokens = 1 << 20; }), HasSubstr("batch.tokens0"));
  EXPECT_THAT(message([](auto& c) { c.stages.clear(); }), HasSubstr("len_stages: 0"));
  EXPECT_THAT(message([](auto& c) { c.stages[1].fraction = 0.3; }), HasSubstr("len_stages: 1.05"));
  EXPECT_THAT(message([](auto& c) { c.stages[3].sparse = false; }),
              HasSubstr("len_stages[3].sparse: false"));
  EXPECT_THAT(message([](auto& c) { c.stages[3].sequence_length = 512; }),
              HasSubstr("len_stages[3].sequence_length: 512"));
}

}  // namespace
}  // namespace hadal::train
