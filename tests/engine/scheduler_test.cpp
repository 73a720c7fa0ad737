// Who goes next, where chunks end, and what waits outside.
#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine_fixture.h"
#include "engine/swap_store.h"
#include "support/failing_file_system.h"

namespace hadal::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Waiting {
  Waiting(const std::string& key, std::uint64_t arrival, std::int32_t priority = 0) {
    generation.request.fairness_key = key;
    generation.request.priority = priority;
    generation.arrival = arrival;
    choice.generation = &generation;
  }
  Generation generation;
  Choice choice;
};

TEST(Scheduler, PriorityThenInterruptedThenFairThenArrival) {
  Waiting plain("a", 0), later("a", 1), urgent("a", 5, 1), interrupted("a", 4);
  interrupted.generation.n_preemptions = 1;
  Scheduler scheduler;
  std::vector<Choice*> order = {&later.choice, &plain.choice, &interrupted.choice, &urgent.choice};
  scheduler.order(order);
  EXPECT_THAT(order,
              ElementsAre(&urgent.choice, &interrupted.choice, &plain.choice, &later.choice));
}

TEST(Scheduler, AKeyThatReceivedMuchWaitsForOneThatDidNot) {
  Waiting greedy("greedy", 0), modest("modest", 1);
  Scheduler scheduler;
  scheduler.arrive("greedy", {});
  scheduler.charge("greedy", 5000);
  const std::vector<std::string> active = {"greedy"};
  scheduler.arrive("modest", active);
  // Level at first: the newcomer does not get all that it missed.
  EXPECT_TRUE(scheduler.before(greedy.choice, modest.choice));
  scheduler.charge("greedy", 1);
  EXPECT_TRUE(scheduler.before(modest.choice, greedy.choice));
  scheduler.charge("modest", 2);
  EXPECT_TRUE(scheduler.before(greedy.choice, modest.choice));
}

TEST(Scheduler, TheVictimIsTheSlowReaderThenTheLeastUrgentThenTheLatest) {
  Waiting first("a", 0), last("a", 9), urgent("a", 10, 1), slow("a", 1);
  std::vector<Choice*> running = {&first.choice, &last.choice, &urgent.choice};
  EXPECT_EQ(Scheduler::victim(running, 3), &last.choice);
  slow.generation.suspended = true;
  running.push_back(&slow.choice);
  EXPECT_EQ(Scheduler::victim(running, 3), &slow.choice);
  for (Waiting* w : {&first, &last, &urgent, &slow}) w->generation.n_preemptions = 3;
  EXPECT_EQ(Scheduler::victim(running, 3), nullptr);
}

TEST(ChunkEnd, StopsAtPagesAndSnapshotsAndTheEnd) {
  const std::vector<std::int64_t> snapshots = {256, 384};
  EXPECT_EQ(chunk_end(0, 1000, 200, 128, {}), 128);
  EXPECT_EQ(chunk_end(0, 1000, 100, 128, {}), 0);  // does not reach a page
  EXPECT_EQ(chunk_end(0, 90, 100, 128, {}), 90);
  EXPECT_EQ(chunk_end(896, 1000, 512, 128, {}), 1000);
  EXPECT_EQ(chunk_end(0, 1000, 900, 128, snapshots), 256);
  EXPECT_EQ(chunk_end(256, 1000, 900, 128, snapshots), 384);
  EXPECT_EQ(chunk_end(384, 1000, 900, 128, snapshots), 1000);
}

TEST(SnapshotBoundaries, AreBelowTheLastTokenAndAtIntervals) {
  EXPECT_THAT(snapshot_boundaries(100, 128, 4096, {}), IsEmpty());
  EXPECT_THAT(snapshot_boundaries(128, 128, 4096, {}), IsEmpty());
  EXPECT_THAT(snapshot_boundaries(129, 128, 4096, {}), ElementsAre(128));
  const std::vector<std::int64_t> wanted = {300, 301, 5000};
  EXPECT_THAT(snapshot_boundaries(1000, 128, 256, wanted), ElementsAre(256, 512, 768, 896));
}

class Swapped : public ::testing::Test {
 protected:
  // A sequence of 200 tokens, and what follows them.
  Swapped() : kv_(tiny().config, {}), ctx_(runtime_.context(Numerics::official)) {
    slot_ = kv_.open();
    ids_ = prompt(200, 3);
    (void)forward(slot_, 0, ids_);
  }
  std::vector<float> forward(std::int64_t slot, std::int64_t begin, std::span<const TokenId> ids) {
    model::TokenBatch batch;
    batch.add(ids, begin, slot);
    const Tensor streams = tiny().model.forward(ctx_, batch, kv_);
    const std::int64_t last[] = {batch.n_tokens() - 1};
    const Tensor logits = tiny().model.logits(ctx_, streams, last);
    return {logits.data<float>(), logits.data<float>() + logits.numel()};
  }
  Runtime runtime_{1};
  cache::PagedKv kv_;
  ExecContext ctx_;
  std::int64_t slot_;
  std::vector<TokenId> ids_;
};

TEST_F(Swapped, ComesBackWithTheSameBits) {
  const test::ScratchDirectory scratch;
  for (const Path& directory : {Path(), scratch.path()}) {
    SwapStore store(FileSystem::real(), directory);
    const auto image = store.save(kv_, slot_, 200);
    ASSERT_NE(image, nullptr);
    const std::int64_t fresh = kv_.open();
    ASSERT_TRUE(kv_.reserve(fresh, 200));
    ASSERT_TRUE(store.restore(kv_, fresh, *image));
    const std::vector<TokenId> next = {7};
    EXPECT_EQ(forward(fresh, 200, next), forward(slot_, 200, next));
    kv_.close(fresh);
  }
  EXPECT_EQ(scratch.n_entries(), 0U);  // files go with their images
}

TEST_F(Swapped, ADamagedOrMissingFileIsNotUsed) {
  const test::ScratchDirectory scratch;
  SwapStore store(FileSystem::real(), scratch.path());
  const auto damaged = store.save(kv_, slot_, 200);
  const auto missing = store.save(kv_, slot_, 200);
  std::vector<Path> files;
  for (const auto& entry : std::filesystem::directory_iterator(scratch.path())) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 2U);
  {
    std::fstream file(files[0], std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(1000);
    file.put('\x55');
    file.put('\xaa');
  }
  std::filesystem::remove(files[1]);
  const std::int64_t fresh = kv_.open();
  ASSERT_TRUE(kv_.reserve(fresh, 200));
  EXPECT_FALSE(store.restore(kv_, fresh, *damaged));
  EXPECT_FALSE(store.restore(kv_, fresh, *missing));
}

TEST_F(Swapped, AFullDiskTakesNothingAndAnEarlierProcessLeavesNothing) {
  const test::ScratchDirectory scratch;
  test::write_text(scratch / "00000007.swap", "of an earlier process");
  test::write_text(scratch / "notes.txt", "somebody's");
  test::FailingFileSystem disk(1);  // the directory, and no more
  SwapStore store(disk, scratch.path());
  EXPECT_EQ(scratch.n_entries(), 1U);
  EXPECT_EQ(store.save(kv_, slot_, 200), nullptr);
}

}  // namespace
}  // namespace hadal::engine
