#include "train/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fault_file_system.h"
#include "train/run_log.h"

namespace hadal::train {
namespace {

using test::FaultFileSystem;
using testing::ElementsAre;
using testing::HasSubstr;

const Path kFile = "/run/metrics.jsonl";

StepRecord step(std::int64_t n) {
  StepRecord r;
  r.step = n, r.tokens = 100 * n, r.loss = 5.0 - 0.01 * static_cast<double>(n), r.grad_norm = 1;
  return r;
}
EventRecord happened(std::int64_t at, const char* what) {
  return {.step = at, .tokens = 0, .time = 0, .what = what, .sentence = "so it was"};
}
EvalRecord measured(std::int64_t at) {
  return {.step = at,
          .tokens = 100 * at,
          .time = 0,
          .split = "validation",
          .loss = 4,
          .eval_tokens = 10};
}

std::vector<std::string> kinds_and_steps(const FaultFileSystem& fs) {
  std::vector<std::string> out;
  std::istringstream in(fs.content(kFile));
  for (std::string line; std::getline(in, line);) {
    const auto record = parse_record(line, "content");
    const char* kinds[] = {"step", "eval", "sample", "event"};
    out.push_back(std::string(kinds[record->index()]) + " " + std::to_string(step_of(*record)));
  }
  return out;
}

MetricsLog started(FaultFileSystem& fs, std::int64_t sync_every = 0) {
  fs.create_directories(kFile.parent_path());
  return MetricsLog::create(fs, kFile, {.sync_every = sync_every});
}

TEST(MetricsLog, EveryRecordIsInTheFileAtOnce) {
  FaultFileSystem fs;
  MetricsLog log = started(fs);
  log.write(measured(0));
  log.write(step(1));
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("eval 0", "step 1"));
}

TEST(MetricsLog, ANewRunDoesNotOverwriteAnOldOne) {
  FaultFileSystem fs;
  started(fs).write(step(1));
  try {
    (void)started(fs);
    FAIL() << "it did";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::invalid_argument);
    EXPECT_THAT(error.what(), HasSubstr("/run/metrics.jsonl has the records of a run already"));
  }
}

TEST(MetricsLog, ResumingDropsWhatWillBeDoneAgain) {
  FaultFileSystem fs;
  {
    MetricsLog log = started(fs);
    log.write(measured(0));
    for (int i = 1; i <= 4; ++i) {
      log.write(step(i));
      if (i == 2) log.write(measured(2)), log.write(happened(2, "checkpoint"));
    }
  }
  MetricsLog log = MetricsLog::resume(fs, kFile, 2);
  EXPECT_EQ(log.dropped().n_later, 2);
  EXPECT_THAT(log.dropped().damaged, ElementsAre());
  log.write(happened(2, "resumed"));
  log.write(step(3));
  EXPECT_THAT(kinds_and_steps(fs),
              ElementsAre("eval 0", "step 1", "step 2", "eval 2", "event 2", "event 2", "step 3"));
}

TEST(MetricsLog, ResumingFromTheStartKeepsWhatWasMeasuredBeforeIt) {
  FaultFileSystem fs;
  {
    MetricsLog log = started(fs);
    log.write(measured(0)), log.write(step(1));
  }
  EXPECT_EQ(MetricsLog::resume(fs, kFile, 0).dropped().n_later, 1);
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("eval 0"));
}

TEST(MetricsLog, ResumingWithoutAFileBegins) {
  FaultFileSystem fs;
  fs.create_directories(kFile.parent_path());
  MetricsLog::resume(fs, kFile, 7).write(step(8));
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("step 8"));
}

TEST(MetricsLog, AfterARollbackTheNewestRecordOfAStepCounts) {
  const auto rolled_back = [](FaultFileSystem& fs) {
    MetricsLog log = started(fs);
    for (int i = 1; i <= 5; ++i) log.write(step(i));
    log.write(happened(2, "rollback"));
    for (int i = 3; i <= 4; ++i) log.write(step(i));
  };
  FaultFileSystem again;
  rolled_back(again);
  // Saved on the second way through step 3.
  EXPECT_EQ(MetricsLog::resume(again, kFile, 3).dropped().n_later, 1);
  EXPECT_THAT(kinds_and_steps(again),
              ElementsAre("step 1", "step 2", "step 3", "step 4", "step 5", "event 2", "step 3"));
  FaultFileSystem first;
  rolled_back(first);
  // Step 5 was only on the first: the rollback is still to come.
  EXPECT_EQ(MetricsLog::resume(first, kFile, 5).dropped().n_later, 3);
  EXPECT_THAT(kinds_and_steps(first),
              ElementsAre("step 1", "step 2", "step 3", "step 4", "step 5"));
}

TEST(MetricsLog, ATornLastLineAndDamagedOnesGoByName) {
  FaultFileSystem fs;
  const std::string good = to_json_line(step(1)) + "\n";
  fs.create_directories(kFile.parent_path());
  fs.set_content(kFile, good + "{\"kind\":\"st#p\n" + to_json_line(step(2)) + "\n" +
                            to_json_line(step(3)).substr(0, 20));
  MetricsLog log = MetricsLog::resume(fs, kFile, 2);
  EXPECT_THAT(log.dropped().damaged,
              ElementsAre(HasSubstr("/run/metrics.jsonl line 2: not a record"),
                          HasSubstr("/run/metrics.jsonl line 4: the last line is cut off")));
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("step 1", "step 2"));
}

TEST(MetricsLog, WhatWasSyncedSurvivesPowerLossAndTheRestIsResumable) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    FaultFileSystem fs;
    {
      MetricsLog log = started(fs);
      for (int i = 1; i <= 20; ++i) {
        log.write(step(i));
        if (i == 12) log.sync();
      }
    }
    fs.power_loss(seed);
    MetricsLog log = MetricsLog::resume(fs, kFile, 12);
    log.write(step(13));
    const auto records = kinds_and_steps(fs);
    ASSERT_EQ(records.size(), 13U) << "seed " << seed;
    EXPECT_EQ(records[11], "step 12");
    EXPECT_EQ(records[12], "step 13");
  }
}

TEST(MetricsLog, PowerLossWhileResumingLeavesTheOldFileOrTheNewOne) {
  std::uint64_t whole = 0;
  for (std::uint64_t cut = 0; cut <= whole; cut += 97) {
    FaultFileSystem fs;
    {
      MetricsLog log = started(fs);
      for (int i = 1; i <= 9; ++i) log.write(step(i));
      log.sync();
    }
    whole = fs.content(kFile).size();
    fs.kill_after_bytes(cut);
    try {
      (void)MetricsLog::resume(fs, kFile, 5);
    } catch (const Error&) {
    }
    fs.power_loss(cut);
    const std::size_t n = kinds_and_steps(fs).size();
    EXPECT_TRUE(n == 9 || n == 5) << n << " records after " << cut << " bytes";
    EXPECT_EQ(MetricsLog::resume(fs, kFile, 5).dropped().damaged.size(), 0U);
    EXPECT_EQ(kinds_and_steps(fs).size(), 5U);
  }
}

TEST(MetricsLog, SyncsByItselfAsOftenAsItWasTold) {
  FaultFileSystem fs;
  MetricsLog log = started(fs, 4);
  const std::uint64_t before = fs.n_syncs();
  for (int i = 1; i <= 9; ++i) log.write(step(i));
  EXPECT_EQ(fs.n_syncs() - before, 2U);
  log.sync();
  log.sync();  // nothing to do
  EXPECT_EQ(fs.n_syncs() - before, 3U);
}

TEST(MetricsLog, AfterAFullDiskTheNextRecordIsWhole) {
  FaultFileSystem fs;
  MetricsLog log = started(fs);
  log.write(step(1));
  fs.set_capacity(fs.content(kFile).size() + 25);  // half a record
  EXPECT_THROW(log.write(step(2)), Error);
  fs.set_capacity(std::uint64_t{1} << 40);
  log.write(step(3));
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("step 1", "step 3"));
}

TEST(RunLog, WritesBothAndContinuesWithAFileOfItsOwn) {
  FaultFileSystem fs;
  RunLog(fs, "/run", {.resume_step = std::nullopt, .tensorboard = true, .time = 1000})
      .write(step(1));
  RunLog(fs, "/run", {.resume_step = 1, .tensorboard = true, .time = 1000}).write(step(2));
  EXPECT_THAT(kinds_and_steps(fs), ElementsAre("step 1", "step 2"));
  const auto files = fs.list("/run/tensorboard");
  ASSERT_EQ(files.size(), 2U);
  EXPECT_THAT(files[0].name, testing::StartsWith("events.out.tfevents.0000001000."));
  RunLog(fs, "/plain", {.resume_step = std::nullopt, .tensorboard = false, .time = 0})
      .write(step(1));
  EXPECT_FALSE(fs.exists("/plain/tensorboard"));
}

}  // namespace
}  // namespace hadal::train
