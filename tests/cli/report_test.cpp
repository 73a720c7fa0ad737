// `hadal report` on runs, and on what is none.
#include <gtest/gtest.h>

#include "cli/command.h"

namespace hadal::test {
namespace {

using testing::HasSubstr;

std::string step_line(int step, double loss) {
  return R"({"kind":"step","step":)" + std::to_string(step) + R"(,"tokens":)" +
         std::to_string(1000 * step) + R"(,"phase":"dense","loss":)" + std::to_string(loss) +
         R"(,"grad_norm":1,"lr":0.001,"step_seconds":0.5,"tokens_per_second":2000})" + "\n";
}

// A run of `n` steps whose loss falls by `pace` a step.
Path make_run(const ScratchDirectory& scratch, const std::string& name, int n, double pace) {
  std::string text;
  for (int i = 1; i <= n; ++i) text += step_line(i, 9 - pace * i);
  std::filesystem::create_directories(scratch / name);
  write_text(scratch / name / "metrics.jsonl", text);
  write_text(scratch / name / "config.toml", "[lr]\npeak = 0.1\n[[stages]]\nfraction = 1.0\n");
  write_text(scratch / name / "config.json",
             R"({"hidden_size": 64, "rope_scaling": {"factor": 4}})");
  return scratch / name;
}

TEST(ReportCommand, WritesOnePage) {
  const ScratchDirectory scratch;
  const Path run = make_run(scratch, "nano", 30, 0.1), page = scratch / "new" / "page.html";
  const CommandResult r = hadal_command({"report", run.string(), "-o", page.string()});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, testing::MatchesRegex(".*page.html: .* KiB of 1 run\n"));
  EXPECT_EQ(r.err, "");
  const std::string html = read_text(page);
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  EXPECT_THAT(html, HasSubstr(R"(["lr.peak","0.1"],["stages[0].fraction","1"])"));
  EXPECT_THAT(html, HasSubstr(R"(["model.rope_scaling.factor","4"])"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(scratch / "new"), {}), 1);
}

TEST(ReportCommand, PrintsTextAndComparesRuns) {
  const ScratchDirectory scratch;
  const Path slow = make_run(scratch, "slow", 40, 0.05), fast = make_run(scratch, "fast", 40, 0.1);
  const CommandResult r =
      hadal_command({"report", slow.string(), (fast / "metrics.jsonl").string(), "--text"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("slow: 40 steps, 40.0k tokens"));
  EXPECT_THAT(r.out, HasSubstr("fast: 40 steps"));
  // 9 - 0.05 * 40 is where the other is at step 20.
  EXPECT_THAT(r.out, HasSubstr("slow ended with a smoothed training loss of 7.0000 after 40.0k "
                               "tokens; fast was there after 20.0k, 50 % of the tokens."));
  EXPECT_FALSE(std::filesystem::exists("report.html"));
}

TEST(ReportCommand, WritesEventsForTensorBoard) {
  const ScratchDirectory scratch;
  const Path run = make_run(scratch, "nano", 3, 0.1);
  const CommandResult r =
      hadal_command({"report", run.string(), "--tensorboard", (scratch / "events").string()});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("events/nano/events.out.tfevents."));
}

TEST(ReportCommand, WhatIsNoRunIsRefused) {
  const ScratchDirectory scratch;
  std::filesystem::create_directories(scratch / "empty");
  std::filesystem::create_directories(scratch / "void");
  write_text(scratch / "void" / "metrics.jsonl", "");
  const std::string page = (scratch / "page.html").string();
  const auto report = [&](const std::string& run) {
    return hadal_command({"report", (scratch / run).string(), "-o", page});
  };
  expect_refusal(report("none"), "there is no run");
  expect_refusal(report("empty"), "it has no metrics.jsonl");
  expect_refusal(report("void"), "has no step yet");
  expect_usage_error(hadal_command({"report"}), "RUN");
  EXPECT_FALSE(std::filesystem::exists(page));
}

TEST(ReportCommand, ADamagedLineIsNamedAndTheRestIsShown) {
  const ScratchDirectory scratch;
  std::filesystem::create_directories(scratch / "hurt");
  write_text(scratch / "hurt" / "metrics.jsonl", step_line(1, 9) + "rubbish\n" + step_line(2, 8));
  const CommandResult r = hadal_command({"report", (scratch / "hurt").string(), "--text"});
  EXPECT_EQ(r.status, 0);
  EXPECT_THAT(r.out, HasSubstr("hurt: 2 steps"));
  EXPECT_THAT(r.err, HasSubstr("metrics.jsonl line 2: not a record of a training run"));
}

TEST(ReportCommand, ADiskThatIsFullIsSaid) {
  const ScratchDirectory scratch;
  const Path run = make_run(scratch, "nano", 3, 0.1);
  expect_refusal(hadal_command({"report", run.string(), "-o", "/dev/full/page.html"}), "/dev/full");
}

}  // namespace
}  // namespace hadal::test
