// Checkpoints on disks that fill up, lose power, and under processes that are killed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "core/error.h"
#include "core/rng.h"
#include "support/failing_file_system.h"
#include "support/fault_file_system.h"
#include "train/checkpoint_fixture.h"

namespace hadal::train {
namespace {

using test::holds_its_state;
using test::state_at;
using ::testing::HasSubstr;

const Path kDirectory = "/run/checkpoints";
const SaveOptions kOptions{.keep = 1, .keep_every = 0, .shard_bytes = 200};

void ignore(const std::string&) {}

// A disk with the checkpoint of step 1, then a second save under the fault. `step`: 2 for a new
// one, with the removal of the first; 1 to replace it.
struct Attempt {
  bool finished = false;
  std::int64_t step = 0;
  ::testing::AssertionResult whole = ::testing::AssertionFailure();
};
template <class Inject, class Restore>
Attempt attempt(std::int64_t step, Inject inject, Restore restore) {
  test::FaultFileSystem fs;
  save_checkpoint(fs, kDirectory, state_at(1), kOptions);
  fs.sync_directory(kDirectory);
  inject(fs);
  Attempt result;
  try {
    save_checkpoint(fs, kDirectory, state_at(step), kOptions);
    result.finished = true;
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::io);
  }
  restore(fs);
  const auto found = latest_checkpoint(fs, kDirectory, ignore);
  if (!found) return result;
  result.step = found->step();
  result.whole = holds_its_state(*found);
  if (result.finished) {
    EXPECT_EQ(result.step, step);
  }
  // And the next save works, whatever lies about.
  save_checkpoint(fs, kDirectory, state_at(3), kOptions);
  EXPECT_EQ(latest_checkpoint(fs, kDirectory, ignore)->step(), 3);
  EXPECT_EQ(checkpoint_steps(fs, kDirectory).size(), 1u);
  return result;
}

class CheckpointFault : public ::testing::TestWithParam<std::int64_t> {};

// Every operation of a save is the last one before the power goes; what had not been synced is
// lost, or torn.
TEST_P(CheckpointFault, PowerLossAtEveryOperation) {
  for (const bool torn : {false, true}) {
    std::int64_t n_old = 0, n_new = 0;
    for (std::uint64_t n = 0;; ++n) {
      const Attempt a = attempt(
          GetParam(), [&](auto& fs) { fs.kill_after_operations(n); },
          [&](auto& fs) { torn ? fs.power_loss(n) : fs.power_loss(); });
      ASSERT_TRUE(a.whole) << "after " << n << " operations";
      (a.step == 1 ? n_old : n_new) += 1;
      if (a.finished && n > 200) break;  // far behind the last operation
      ASSERT_LT(n, 1000u);
    }
    EXPECT_GT(n_old, 20);
    if (GetParam() != 1) {
      EXPECT_GT(n_new, 5);
    }
  }
}

TEST_P(CheckpointFault, PowerLossWithinEveryWrite) {
  std::uint64_t total = 0;
  attempt(GetParam(), [](auto&) {}, [&](auto& fs) { total = fs.bytes_written() / 2; });
  ASSERT_GT(total, 2000u);
  for (std::uint64_t n = 0; n < total; n += 23) {
    const Attempt a = attempt(
        GetParam(), [&](auto& fs) { fs.kill_after_bytes(n); }, [&](auto& fs) { fs.power_loss(n); });
    ASSERT_TRUE(a.whole) << "after " << n << " bytes";
  }
}

TEST_P(CheckpointFault, AKilledProcessLeavesItsFiles) {
  for (std::uint64_t n = 0; n < 120; ++n) {
    const Attempt a = attempt(
        GetParam(), [&](auto& fs) { fs.kill_after_operations(n); }, [](auto& fs) { fs.restart(); });
    ASSERT_TRUE(a.whole) << "after " << n << " operations";
  }
}

INSTANTIATE_TEST_SUITE_P(Steps, CheckpointFault, ::testing::Values(1, 2), [](const auto& step) {
  return step.param == 1 ? std::string("Replace") : std::string("Next");
});

// The disk is full at any operation: the error says so, the partial one goes, the earlier one is
// as it was.
TEST(CheckpointDisk, FullAtEveryOperation) {
  int n_failed = 0;
  for (int limit = 0;; ++limit) {
    const test::ScratchDirectory scratch;
    save_checkpoint(FileSystem::real(), scratch.path(), state_at(1));
    test::FailingFileSystem fs(limit);
    try {
      save_checkpoint(fs, scratch.path(), state_at(2));
    } catch (const Error& e) {
      ++n_failed;
      EXPECT_EQ(e.code, ErrorCode::io);
      EXPECT_THAT(e.what(), HasSubstr("the checkpoint of step 2 is not saved: cannot write"));
      EXPECT_THAT(e.what(), HasSubstr("No space left on device"));
      EXPECT_EQ(scratch.n_entries(), 1u) << "limit " << limit;
      const auto found = latest_checkpoint(FileSystem::real(), scratch.path(), ignore);
      EXPECT_EQ(found->step(), 1);
      EXPECT_TRUE(holds_its_state(*found));
      continue;
    }
    break;
  }
  EXPECT_GT(n_failed, 20);
}

TEST(CheckpointDisk, TooSmallIsSaidBeforehand) {
  test::FaultFileSystem fs;
  save_checkpoint(fs, kDirectory, state_at(1, {.scale = 1000}));
  const std::uint64_t before = fs.bytes_written();
  fs.set_capacity(before + 100'000);
  try {
    save_checkpoint(fs, kDirectory, state_at(2, {.scale = 1000}));
    FAIL() << "there was no room";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::io);
    EXPECT_THAT(e.what(), HasSubstr("step 2 is not saved: it takes 341.4 KiB, and the disk of "
                                    "/run/checkpoints has 97.7 KiB left"));
  }
  EXPECT_EQ(fs.bytes_written(), before);
  EXPECT_TRUE(holds_its_state(*latest_checkpoint(fs, kDirectory, ignore), {.scale = 1000}));
}

TEST(CheckpointDisk, ASyncThatFailsIsNoCheckpoint) {
  test::FaultFileSystem fs;
  save_checkpoint(fs, kDirectory, state_at(1));
  fs.fail_syncs(true);
  EXPECT_THROW(save_checkpoint(fs, kDirectory, state_at(2)), Error);
  fs.fail_syncs(false);
  EXPECT_EQ(checkpoint_steps(fs, kDirectory), std::vector<std::int64_t>{1});
}

// --- kill -9 ---

// What a trainer does: load the newest, go on, save after every step, say so through `out`.
[[noreturn]] void train_forever(const Path& directory, int out) {
  std::int64_t step = 0;
  if (const auto found = latest_checkpoint(FileSystem::real(), directory, ignore)) {
    if (!holds_its_state(*found)) ::_exit(3);
    step = found->step();
  }
  for (;;) {
    ++step;
    try {
      save_checkpoint(FileSystem::real(), directory, state_at(step), {.keep = 2});
    } catch (const Error&) {
      ::_exit(4);
    }
    if (::write(out, &step, sizeof step) != sizeof step) ::_exit(5);
  }
}

TEST(CheckpointKill, SurvivesKillNineAtAnyMoment) {
  const test::ScratchDirectory scratch;
  Rng rng(2026);
  std::int64_t acknowledged = 0, n_between = 0, n_ahead = 0;
  constexpr int kKills = 50;
  for (int kill = 0; kill < kKills; ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(ends[0]);
      train_forever(scratch.path(), ends[1]);
    }
    ::close(ends[1]);
    // After a save, at any moment of about the time that the next one takes.
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_EQ(::read(ends[0], &acknowledged, sizeof acknowledged),
              static_cast<ssize_t>(sizeof acknowledged));
    const auto took = std::chrono::steady_clock::now() - begin;
    std::this_thread::sleep_for(took * rng.next_uniform());
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child gave up with " << WEXITSTATUS(status);
    while (::read(ends[0], &acknowledged, sizeof acknowledged) > 0) {
    }
    ::close(ends[0]);

    for (const auto& entry : FileSystem::real().list(scratch.path())) {
      n_between += entry.name.ends_with(".partial") ? 1 : 0;
    }
    const auto found = latest_checkpoint(FileSystem::real(), scratch.path(), [](const auto& s) {
      ADD_FAILURE() << "no kill damages a checkpoint that has its name: " << s;
    });
    ASSERT_TRUE(found);
    // What was reported as saved is there; the one after may be.
    EXPECT_GE(found->step(), acknowledged);
    EXPECT_LE(found->step(), acknowledged + 1);
    n_ahead += found->step() > acknowledged ? 1 : 0;
    EXPECT_TRUE(holds_its_state(*found));
  }
  std::printf("of %d kills, %lld left a half-written checkpoint and %lld a whole one unreported\n",
              kKills, static_cast<long long>(n_between), static_cast<long long>(n_ahead));
}

}  // namespace
}  // namespace hadal::train
