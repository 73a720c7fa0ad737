#include "train/run_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/run_fixture.h"

namespace hadal::train {
namespace {

using test::FaultFileSystem;
using testing::ElementsAre;
using testing::HasSubstr;

template <class Call>
std::string refusal(ErrorCode code, Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code);
    return error.what();
  }
  return "nothing thrown";
}

TEST(RunHistory, ReadsWhatALogHas) {
  FaultFileSystem fs;
  write_records(
      fs, "/runs/nano",
      {made_eval(0, 8), made_step(1), made_step(2),
       EventRecord{.step = 2, .tokens = 2000, .time = 0, .what = "checkpoint", .sentence = "saved"},
       SampleRecord{.step = 2, .tokens = 2000, .time = 0, .prompt = "a", .text = "b"}});
  fs.set_content("/runs/nano/config.toml", "[lr]\npeak = 1e-3\n");
  for (const char* path : {"/runs/nano", "/runs/nano/", "/runs/nano/metrics.jsonl"}) {
    const RunHistory run = load_run(fs, path);
    EXPECT_EQ(run.name, "nano") << path;
    EXPECT_EQ(run.steps.size(), 2U);
    EXPECT_EQ(run.evals.size() + run.samples.size() + run.events.size(), 3U);
    EXPECT_EQ(run.config_text, "[lr]\npeak = 1e-3\n");
    EXPECT_THAT(run.warnings, ElementsAre());
  }
}

TEST(RunHistory, WhatIsNoRunIsNamed) {
  FaultFileSystem fs;
  fs.create_directories("/runs/empty");
  fs.set_content("/runs/void/metrics.jsonl", "");
  write_records(fs, "/runs/early", {made_eval(0, 8)});
  const auto load = [&](const char* path) { return [&fs, path] { (void)load_run(fs, path); }; };
  EXPECT_THAT(refusal(ErrorCode::not_found, load("/runs/none")),
              HasSubstr("there is no run /runs/none"));
  EXPECT_THAT(refusal(ErrorCode::not_found, load("/runs/empty")),
              HasSubstr("/runs/empty is no training run: it has no metrics.jsonl"));
  EXPECT_THAT(refusal(ErrorCode::corrupt_data, load("/runs/void")),
              HasSubstr("/runs/void/metrics.jsonl has no step yet"));
  EXPECT_THAT(refusal(ErrorCode::corrupt_data, load("/runs/early")), HasSubstr("has no step yet"));
}

TEST(RunHistory, ADamagedLineIsNamedAndPassedOver) {
  FaultFileSystem fs;
  fs.set_content("/r/metrics.jsonl", to_json_line(made_step(1)) + "\nrubbish\n" +
                                         to_json_line(made_step(2)) + "\n{\"kind\":\"st");
  const RunHistory run = load_run(fs, "/r");
  EXPECT_EQ(run.steps.size(), 2U);
  // The last line may be just being written.
  EXPECT_THAT(run.warnings, ElementsAre(HasSubstr("/r/metrics.jsonl line 2: not a record")));
}

TEST(RunHistory, ARollbackGivesUpWhatItWentBackOver) {
  FaultFileSystem fs;
  std::vector<RunRecord> records;
  for (int i = 1; i <= 10; ++i) records.emplace_back(made_step(i));
  records.emplace_back(made_eval(8, 5.0)), records.emplace_back(made_eval(4, 6.0));
  records.emplace_back(
      EventRecord{.step = 6, .tokens = 0, .time = 0, .what = "rollback", .sentence = "spike"});
  for (int i = 7; i <= 9; ++i) records.emplace_back(made_step(i));
  write_records(fs, "/r", records);
  const RunHistory run = load_run(fs, "/r");
  ASSERT_EQ(run.steps.size(), 9U);
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(run.steps[i].step, static_cast<int>(i) + 1);
  ASSERT_EQ(run.abandoned.size(), 1U);
  EXPECT_EQ(run.abandoned[0].front().step, 7);
  EXPECT_EQ(run.abandoned[0].back().step, 10);
  ASSERT_EQ(run.evals.size(), 1U);
  EXPECT_EQ(run.evals[0].step, 4);
  EXPECT_EQ(run.events.size(), 1U);
}

TEST(RunHistory, SmoothingHasNoBiasAndPassesNanOver) {
  std::vector<StepRecord> steps = {made_step(1), made_step(2), made_step(3)};
  for (StepRecord& s : steps) s.loss = 4;
  steps[1].loss = std::nan("");
  EXPECT_THAT(smoothed_loss(steps, 5), ElementsAre(4, 4, 4));
  // Weights k^|i - j|: 50 steps behind an edge, half of (1 + k)^-1 is still of before it.
  steps.assign(2000, made_step(1));
  for (std::size_t i = 0; i < steps.size(); ++i) steps[i].loss = i < 1000 ? 8 : 4;
  EXPECT_NEAR(smoothed_loss(steps, 50)[1049], 4 + 4 * 0.5 / (1 + std::exp2(-0.02)), 1e-5);
}

TEST(RunHistory, SmoothingDoesNotLagBehindASlope) {
  std::vector<StepRecord> steps(2000, made_step(1));
  for (std::size_t i = 0; i < steps.size(); ++i) steps[i].loss = 9 - 0.001 * static_cast<double>(i);
  const std::vector<double> smooth = smoothed_loss(steps, 50);
  // A straight line is kept, but for the rounding of sums of about 100 weights.
  for (const std::size_t i : {0, 1, 30, 1000, 1998, 1999}) {
    EXPECT_NEAR(smooth[i], steps[i].loss, 1e-9) << i;
  }
}

TEST(RunHistory, TokensToEqualLossLieOnTheStraightLine) {
  RunHistory muon = made_run("muon", 40), adamw = made_run("adamw", 40);
  muon.evals = {made_eval(0, 8), made_eval(10, 5), made_eval(20, 4), made_eval(40, 3)};
  adamw.evals = {made_eval(0, 8), made_eval(20, 5), made_eval(40, 3.5)};
  const auto equal = tokens_to_equal_loss(adamw, muon);
  ASSERT_TRUE(equal && equal->other_tokens);
  EXPECT_EQ(equal->curve, LossCurve::validation);
  EXPECT_EQ(equal->loss, 3.5);
  EXPECT_EQ(equal->reference_tokens, 40'000);
  EXPECT_NEAR(*equal->other_tokens, 30'000, 1e-6);  // half way from 4 to 3
  EXPECT_NEAR(*equal->ratio(), 0.75, 1e-12);
  EXPECT_EQ(to_string(*equal),
            "adamw ended with a validation loss of 3.5000 after 40.0k tokens; muon was there after "
            "30.0k, 75 % of the tokens.");
  const auto never = tokens_to_equal_loss(muon, adamw);
  ASSERT_TRUE(never);
  EXPECT_FALSE(never->other_tokens);
  EXPECT_FALSE(never->ratio());
  EXPECT_THAT(to_string(*never), HasSubstr("adamw never got there (best 3.5000)"));
}

TEST(RunHistory, AFirstMeasurementBelowTheLossIsOnlyABound) {
  RunHistory a = made_run("a", 40), b = made_run("b", 40);
  a.evals = {made_eval(40, 4)};
  b.evals = {made_eval(30, 3.5)};
  const auto equal = tokens_to_equal_loss(a, b);
  ASSERT_TRUE(equal && equal->at_most);
  EXPECT_THAT(to_string(*equal), HasSubstr("b was there after at most 30.0k, 75 % of the tokens"));
}

TEST(RunHistory, WithoutValidationTheTrainingLossIsCompared) {
  RunHistory fast = made_run("fast", 400, 0.02);
  const RunHistory slow = made_run("slow", 400, 0.01);
  fast.evals = {made_eval(400, 3)};
  const auto equal = tokens_to_equal_loss(slow, fast);
  ASSERT_TRUE(equal && equal->other_tokens);
  EXPECT_EQ(equal->curve, LossCurve::train);
  // The same curve at twice the pace; smoothing lags by the same few steps in both.
  EXPECT_NEAR(*equal->ratio(), 0.5, 0.02);
  RunHistory broken = made_run("broken", 3);
  for (StepRecord& s : broken.steps) s.loss = std::nan("");
  EXPECT_FALSE(tokens_to_equal_loss(slow, broken));
}

std::string value_of(const RunHistory& run, const std::string& label) {
  for (const SummaryRow& row : summarize(run)) {
    if (row.label == label) return row.value + (row.warns ? " !" : "");
  }
  return "no such row";
}

TEST(RunHistory, TheSummarySaysWhatIsThere) {
  RunHistory run = made_run("r", 200);
  EXPECT_EQ(value_of(run, "Tokens"), "200k");
  EXPECT_EQ(value_of(run, "Speed"), "2.00k tokens/s");
  EXPECT_EQ(value_of(run, "Training time"), "1m40s");
  EXPECT_EQ(value_of(run, "Peak memory"), "1.0 MiB");
  EXPECT_EQ(value_of(run, "Validation loss"), "");
  EXPECT_EQ(value_of(run, "Busiest expert"), "");
  EXPECT_EQ(value_of(run, "Rollbacks"), "0");
  for (StepRecord& s : run.steps)
    s.expert_load = {std::nan(""), 1.2, 1.75}, s.dead_experts = {0, 2};
  run.evals = {made_eval(100, 4.5)};
  EXPECT_EQ(value_of(run, "Busiest expert"), "1.75× mean !");
  EXPECT_EQ(value_of(run, "Dead experts"), "2 !");
  EXPECT_EQ(value_of(run, "Validation loss"), "4.5000");
  // Runs of other kinds have the same rows: they are compared row by row.
  const auto rows = summarize(run), bare = summarize(made_run("bare", 1));
  ASSERT_EQ(rows.size(), bare.size());
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].label, bare[i].label);
}

TEST(RunHistory, TheIndexersWarmUpIsNoLossOfLoss) {
  RunHistory run = made_run("r", 20);
  run.steps[3].loss = std::nan(""), run.steps[3].phase = "indexer_warmup";
  EXPECT_EQ(value_of(run, "Rollbacks"), "0");
  run.steps[5].loss = std::nan("");
  EXPECT_EQ(value_of(run, "Rollbacks"), "0 !");
}

}  // namespace
}  // namespace hadal::train
