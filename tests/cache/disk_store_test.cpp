#include "cache/disk_store.h"

#include <gmock/gmock.h>

#include <sys/stat.h>

#include "cache/fake_text.h"
#include "support/failing_file_system.h"
#include "support/fault_file_system.h"
#include "support/safetensors_bytes.h"

namespace hadal::cache {
namespace {

using hadal::test::FaultFileSystem;
using test::expect_true_to;
using test::remember;
using test::Text;
using test::text_of;

constexpr std::int64_t kPage = 32;

// What one process holds; another one starts with a new one over the same files.
struct Process {
  explicit Process(FileSystem& fs, DiskStoreOptions options = {},
                   PrefixCacheOptions cache_options = {}, std::int64_t page_tokens = kPage,
                   const Path& directory = "/cache")
      : kv(test::tiny_config(), {.page_tokens = page_tokens}),
        disk(fs, directory, KvLayout(test::tiny_config(), Numerics::official, page_tokens, 0),
             with_defaults(std::move(options))),
        cache(kv, cache_options, &disk) {}
  static DiskStoreOptions with_defaults(DiskStoreOptions options) {
    if (options.fingerprint.empty()) options.fingerprint = "model A";
    options.min_free_bytes = std::min<std::uint64_t>(options.min_free_bytes, 1000);
    return options;
  }
  PagedKv kv;
  DiskStore disk;
  PrefixCache cache;
};

std::vector<Path> files_in(FileSystem& fs, const Path& directory) {
  std::vector<Path> files;
  for (const FileSystem::Entry& entry : fs.list(directory)) {
    if (!entry.is_directory) {
      files.push_back(directory / entry.name);
    } else {
      for (const Path& file : files_in(fs, directory / entry.name)) files.push_back(file);
    }
  }
  return files;
}
std::vector<Path> kv_files(FileSystem& fs) {
  std::vector<Path> files = files_in(fs, "/cache/kv");
  for (const Path& file : files_in(fs, "/cache/snap")) files.push_back(file);
  return files;
}

TEST(DiskStore, RestartFindsWhatWasWritten) {
  FaultFileSystem fs;
  const Text text = text_of(10 * kPage + 5);
  {
    Process p(fs, {.pages_per_file = 4});
    remember(p.kv, p.cache, text, {2 * kPage, 8 * kPage});
    p.cache.flush();
    EXPECT_EQ(p.disk.statistics().files, 2U + 1U + 2U);  // pages 0-1, 2-5, 6-7 and two states
    EXPECT_EQ(p.disk.statistics().dropped_writes, 0U);
  }
  fs.power_loss();
  Process p(fs, {.pages_per_file = 4});
  EXPECT_EQ(p.disk.statistics().files, 5U);
  const PrefixCache::Hit hit = p.cache.find("someone", text);
  EXPECT_EQ(hit.position, 8 * kPage);
  EXPECT_TRUE(hit.from_disk);
  expect_true_to(p.kv, hit, text);
  EXPECT_EQ(p.disk.statistics().page_hits, 8U);
  EXPECT_EQ(p.disk.statistics().snapshot_hits, 1U);
  // Now it is in memory.
  const PrefixCache::Hit again = p.cache.find("someone", text);
  EXPECT_EQ(again.position, 8 * kPage);
  EXPECT_FALSE(again.from_disk);
  EXPECT_EQ(p.disk.statistics().page_hits, 8U);
  EXPECT_EQ(p.cache.find("someone else", text).position, 0);
}

TEST(DiskStore, WhatMemoryForgetsIsReadAgain) {
  FaultFileSystem fs;
  Process p(fs);
  const Text text = text_of(6 * kPage + 1);
  remember(p.kv, p.cache, text, {6 * kPage});
  p.disk.flush();
  EXPECT_EQ(p.cache.evict(4), 4);
  const PrefixCache::Hit hit = p.cache.find("someone", text);
  EXPECT_EQ(hit.position, 6 * kPage);
  EXPECT_TRUE(hit.from_disk);
  expect_true_to(p.kv, hit, text);
  EXPECT_EQ(p.disk.statistics().page_hits, 4U);
}

// Memory that is full serves as much of a file as fits, and never takes it from the same prompt.
TEST(DiskStore, ReadingMakesRoomWithoutEvictingItsOwn) {
  FaultFileSystem fs;
  const Text text = text_of(6 * kPage + 1), other = text_of(6 * kPage + 1, 50);
  {
    Process p(fs);
    remember(p.kv, p.cache, text, {2 * kPage, 6 * kPage});
    p.cache.flush();
  }
  DiskStoreOptions options = Process::with_defaults({});
  for (const std::int64_t budget : {4, 6, 8}) {
    PagedKv kv(
        test::tiny_config(),
        {.page_tokens = kPage,
         .page_budget_bytes = static_cast<std::size_t>(budget) *
                              PagedKv(test::tiny_config(), {.page_tokens = kPage}).page_bytes()});
    DiskStore disk(fs, "/cache", KvLayout(test::tiny_config(), Numerics::official, kPage, 0),
                   options);
    PrefixCache cache(kv, {}, &disk);
    remember(kv, cache, Text(other.begin(), other.begin() + 4 * kPage), {});
    const PrefixCache::Hit hit = cache.find("someone", text);
    EXPECT_EQ(hit.position, budget >= 6 ? 6 * kPage : 2 * kPage) << budget;
    expect_true_to(kv, hit, text);
  }
}

TEST(DiskStore, CorruptByteAnywhereIsNoticedAndNeverServed) {
  FaultFileSystem fs;
  const Text text = text_of(3 * kPage + 1);
  {
    Process p(fs);
    remember(p.kv, p.cache, text, {1 * kPage, 3 * kPage});
    p.cache.flush();
  }
  const std::vector<Path> files = kv_files(fs);
  ASSERT_EQ(files.size(), 4U);
  for (const Path& file : files) {
    const std::string good = fs.content(file);
    const KvFileHeader header = read_kv_header(*fs.open_read(file), file.string());
    // Without the first state the last one serves as before.
    const bool spare = header.kind == KvFileKind::snapshot && header.position == kPage;
    const std::int64_t best = spare ? 3 * kPage : kPage;
    for (std::size_t at = 0; at < good.size(); at += at < 128 ? 1 : at < 512 ? 17 : 1999) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      fs.set_content(file, bad);
      {
        Process p(fs);
        const PrefixCache::Hit hit = p.cache.find("someone", text);
        ASSERT_LE(hit.position, best) << file << " byte " << at;
        expect_true_to(p.kv, hit, text);
        if (spare && at >= header.header_bytes()) {  // nobody had a reason to read it
          fs.set_content(file, good);
          continue;
        }
        const auto s = p.disk.statistics();
        ASSERT_EQ(s.rejected_files + s.foreign_files, 1U) << file << " byte " << at;
        ASSERT_FALSE(fs.exists(file));  // never tried again
        // Without it, its text is computed and written anew.
        if (at == 0) {
          remember(p.kv, p.cache, text, {1 * kPage, 3 * kPage});
          p.cache.flush();
          ASSERT_EQ(p.disk.statistics().files, 4U);
        }
      }
      fs.set_content(file, good);
    }
    for (const std::size_t size :
         {std::size_t{0}, std::size_t{100}, std::size_t{4096}, good.size() - 1, good.size() + 1}) {
      std::string cut = good;
      cut.resize(size);
      fs.set_content(file, cut);
      Process p(fs);
      ASSERT_LE(p.cache.find("someone", text).position, best) << file << " cut to " << size;
      ASSERT_EQ(p.disk.statistics().rejected_files, 1U);
      fs.set_content(file, good);
    }
  }
}

// A file that the start found whole and that is damaged later.
TEST(DiskStore, DamageAfterTheStartIsNoticed) {
  FaultFileSystem fs;
  const Text text = text_of(3 * kPage + 1);
  {
    Process p(fs);
    remember(p.kv, p.cache, text, {3 * kPage});
    p.cache.flush();
  }
  Process p(fs);
  ASSERT_EQ(p.disk.statistics().files, 2U);
  const Path pages = files_in(fs, "/cache/kv").at(0);
  std::string bad = fs.content(pages);
  bad.back() = static_cast<char>(bad.back() + 1);
  fs.set_content(pages, bad);
  EXPECT_EQ(p.cache.find("someone", text).position, 0);
  EXPECT_EQ(p.disk.statistics().rejected_files, 1U);
  EXPECT_TRUE(fs.exists(pages.string() + ".bad"));
  EXPECT_EQ(p.cache.find("someone", text).position, 0);
  EXPECT_EQ(p.disk.statistics().rejected_files, 1U);
}

// A name leads to another text's file: the ids inside say so.
TEST(DiskStore, AFileUnderAnotherNameIsRefused) {
  FaultFileSystem fs;
  const Text a = text_of(3 * kPage + 1, 1), b = text_of(3 * kPage + 1, 2);
  Process p(fs);
  remember(p.kv, p.cache, a, {3 * kPage});
  p.cache.flush();
  const Path snapshot_a = files_in(fs, "/cache/snap").at(0);
  remember(p.kv, p.cache, b, {3 * kPage});
  p.cache.flush();
  Path snapshot_b = files_in(fs, "/cache/snap").at(0);
  if (snapshot_b == snapshot_a) snapshot_b = files_in(fs, "/cache/snap").at(1);
  fs.set_content(snapshot_b, fs.content(snapshot_a));
  p.cache.evict(100);
  EXPECT_EQ(p.cache.find("someone", b).position, 0);
  EXPECT_EQ(p.disk.statistics().rejected_files, 1U);
  EXPECT_EQ(p.cache.find("someone", a).position, 3 * kPage);
}

TEST(DiskStore, ForeignModelIsRefusedAndRemoved) {
  FaultFileSystem fs;
  const Text text = text_of(4 * kPage + 1);
  {
    Process p(fs);
    remember(p.kv, p.cache, text, {4 * kPage});
    p.cache.flush();
  }
  {
    Process p(fs, {.fingerprint = "model B"});
    EXPECT_EQ(p.disk.statistics().foreign_files, 2U);
    EXPECT_EQ(p.cache.find("someone", text).position, 0);
    EXPECT_TRUE(kv_files(fs).empty());
    remember(p.kv, p.cache, text, {4 * kPage});
  }
  Process p(fs, {.fingerprint = "model B"}, {}, 2 * kPage);  // another layout
  EXPECT_EQ(p.disk.statistics().foreign_files, 2U);
  EXPECT_EQ(p.cache.find("someone", text).position, 0);
}

TEST(DiskStore, AnotherLayoutThanTheEnginesIsRefused) {
  FaultFileSystem fs;
  DiskStore disk(fs, "/cache", KvLayout(test::tiny_config(), Numerics::official, 64, 0), {});
  PagedKv kv(test::tiny_config(), {.page_tokens = kPage});
  EXPECT_ERROR(PrefixCache(kv, {}, &disk), ErrorCode::invalid_argument, "page=64");
}

TEST(DiskStore, OneProcessADirectory) {
  FaultFileSystem fs;
  Process p(fs);
  EXPECT_THROW(Process{fs}, Error);
}

// A file system that fills up costs hits, never answers.
TEST(DiskStore, DiskFullDropsWritesAndServesOn) {
  FaultFileSystem fs;
  Process p(fs, {.min_free_bytes = 0});
  const Text a = text_of(4 * kPage + 1, 1), b = text_of(4 * kPage + 1, 2);
  remember(p.kv, p.cache, a, {4 * kPage});
  p.cache.flush();
  std::uint64_t used = 0;
  for (const Path& file : kv_files(fs)) used += fs.content(file).size();
  fs.set_capacity(used + 20'000);
  remember(p.kv, p.cache, b, {4 * kPage});
  p.disk.flush();
  EXPECT_GE(p.disk.statistics().dropped_writes + p.disk.statistics().failed_writes, 1U);
  for (const Path& file : kv_files(fs)) EXPECT_NE(file.extension(), ".tmp");
  expect_true_to(p.kv, p.cache.find("someone", b), b);
  p.cache.evict(100);
  EXPECT_EQ(p.cache.find("someone", b).position, 0);
  EXPECT_EQ(p.cache.find("someone", a).position, 4 * kPage);
  // Room again: the next flush writes what was missed.
  fs.set_capacity(std::uint64_t{1} << 40);
  remember(p.kv, p.cache, b, {4 * kPage});
  p.cache.flush();
  p.cache.evict(100);
  const PrefixCache::Hit hit = p.cache.find("someone", b);
  EXPECT_EQ(hit.position, 4 * kPage);
  expect_true_to(p.kv, hit, b);
}

TEST(DiskStore, LeavesSpaceToOthers) {
  FaultFileSystem fs;
  fs.set_capacity(10'000'000);
  PagedKv kv(test::tiny_config(), {.page_tokens = kPage});
  DiskStore disk(fs, "/cache", KvLayout(test::tiny_config(), Numerics::official, kPage, 0),
                 {.fingerprint = "m", .min_free_bytes = 9'999'000});
  PrefixCache cache(kv, {}, &disk);
  remember(kv, cache, text_of(4 * kPage + 1), {4 * kPage});
  disk.flush();
  EXPECT_EQ(disk.statistics().files, 0U);
  EXPECT_EQ(disk.statistics().dropped_writes, 2U);
}

TEST(DiskStore, ASlowDiskNeverHoldsUpTheEngine) {
  FaultFileSystem fs;
  Process p(fs, {.queue_bytes = 1});
  fs.hold_syncs(true);
  // The first write waits for the disk; what comes meanwhile is dropped, and this returns.
  for (int i = 0; i < 5; ++i) {
    remember(p.kv, p.cache, text_of(4 * kPage + 1, 3 * i + 1), {4 * kPage});
  }
  EXPECT_GE(p.disk.statistics().dropped_writes, 4U);
  // Whoever needs memory gets it, but for the pages of the write that runs.
  EXPECT_GE(p.cache.evict(20), 16);
  fs.hold_syncs(false);
  p.disk.flush();
  EXPECT_EQ(p.kv.n_pages_used(), p.cache.n_pages());
}

TEST(DiskStore, MemoryGoesBeforeWhatWaitsToBeWritten) {
  FaultFileSystem fs;
  Process p(fs);
  fs.hold_syncs(true);
  for (int i = 0; i < 5; ++i) {
    remember(p.kv, p.cache, text_of(4 * kPage + 1, 3 * i + 1), {4 * kPage});
  }
  EXPECT_EQ(p.disk.statistics().dropped_writes, 0U);
  EXPECT_GE(p.cache.evict(20), 16);
  EXPECT_GE(p.disk.statistics().dropped_writes, 8U);
  fs.hold_syncs(false);
}

TEST(DiskStore, TheBudgetIsKeptAndTheLongestUnusedGoes) {
  FaultFileSystem fs;
  std::uint64_t each = 0;
  {
    Process p(fs);
    remember(p.kv, p.cache, text_of(4 * kPage + 1, 50), {4 * kPage});
    p.disk.flush();
    each = p.disk.statistics().bytes;
  }
  const auto text = [](int i) { return text_of(4 * kPage + 1, i); };
  {
    Process p(fs, {.fingerprint = "other", .budget_bytes = 3 * each});
    for (const int i : {1, 2, 3}) remember(p.kv, p.cache, text(i), {4 * kPage});
    p.cache.flush();
    p.cache.evict(100);
    EXPECT_EQ(p.cache.find("someone", text(1)).position, 4 * kPage);
    remember(p.kv, p.cache, text(4), {4 * kPage});  // 2 has to go
  }
  Process p(fs, {.fingerprint = "other", .budget_bytes = 3 * each});
  EXPECT_LE(p.disk.statistics().bytes, 3 * each);
  EXPECT_EQ(p.cache.find("someone", text(2)).position, 0);
  for (const int i : {1, 3, 4})
    EXPECT_EQ(p.cache.find("someone", text(i)).position, 4 * kPage) << i;
}

TEST(DiskStore, RecentHitsOutliveARestart) {
  FaultFileSystem fs;
  const auto text = [](int i) { return text_of(4 * kPage + 1, i); };
  std::uint64_t bytes = 0;
  {
    Process p(fs);
    for (const int i : {1, 2}) remember(p.kv, p.cache, text(i), {4 * kPage});
    p.cache.flush();
    bytes = p.disk.statistics().bytes;
    EXPECT_EQ(p.cache.find("someone", text(1)).position, 4 * kPage);
  }
  Process p(fs, {.budget_bytes = bytes});
  remember(p.kv, p.cache, text(3), {4 * kPage});
  p.disk.flush();
  EXPECT_EQ(p.cache.find("someone", text(2)).position, 0);
  EXPECT_EQ(p.cache.find("someone", text(1)).position, 4 * kPage);
}

// Dead anywhere in the middle of writing: what is found after is true, or nothing.
TEST(DiskStore, KilledAtAnyByteNeverServesHalfAFile) {
  const Text text = text_of(3 * kPage + 1);
  std::uint64_t total = 0;
  {
    FaultFileSystem fs;
    Process p(fs);
    remember(p.kv, p.cache, text, {1 * kPage, 3 * kPage});
    p.cache.flush();
    total = fs.bytes_written();
  }
  int found = 0;
  for (std::uint64_t n = 40; n < total; n += 3001) {
    FaultFileSystem fs;
    {
      Process p(fs);
      fs.kill_after_bytes(n);
      remember(p.kv, p.cache, text, {1 * kPage, 3 * kPage});
    }
    fs.restart();
    Process p(fs);
    const PrefixCache::Hit hit = p.cache.find("someone", text);
    expect_true_to(p.kv, hit, text);
    EXPECT_EQ(p.disk.statistics().rejected_files, 0U);
    found += hit.position > 0 ? 1 : 0;
    for (const Path& file : kv_files(fs)) EXPECT_NE(file.extension(), ".tmp");
  }
  EXPECT_GT(found, 0);
}

TEST(DiskStore, PowerLossNeverServesTornFiles) {
  const Text text = text_of(3 * kPage + 1);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    FaultFileSystem fs;
    {
      Process p(fs);
      remember(p.kv, p.cache, text, {1 * kPage});
      p.cache.flush();
      fs.hold_syncs(true);
      remember(p.kv, p.cache, text, {3 * kPage});
      fs.power_loss(seed);
      fs.hold_syncs(false);
    }
    Process p(fs);
    const PrefixCache::Hit hit = p.cache.find("someone", text);
    expect_true_to(p.kv, hit, text);
    EXPECT_GE(hit.position, kPage) << seed;  // what was durable is there
  }
}

TEST(DiskStore, ZeroStrategyStoresNoWindowsAndAsksForAReplay) {
  FaultFileSystem fs;
  const DiskStoreOptions options{.strategy = WindowStrategy::zero};
  const Text text = text_of(16 * kPage + 1);
  {
    Process p(fs, options);
    remember(p.kv, p.cache, text, {16 * kPage});
    p.cache.flush();
    EXPECT_TRUE(files_in(fs, "/cache/snap").empty());
  }
  Process p(fs, options, {.replay = true});
  const PrefixCache::Hit hit = p.cache.find("someone", text);
  EXPECT_EQ(hit.position, 16 * kPage);
  EXPECT_EQ(hit.snapshot, nullptr);
  EXPECT_EQ(hit.replay_from,
            (16 * kPage - p.kv.sliding_window() * p.kv.n_layers()) / kPage * kPage);
  EXPECT_TRUE(hit.from_disk);
  expect_true_to(p.kv, hit, text);
}

TEST(DiskStore, StrategiesSayHowOftenToTakeSnapshots) {
  EXPECT_EQ(snapshot_interval(WindowStrategy::full, 128, 4096), 128);
  EXPECT_EQ(snapshot_interval(WindowStrategy::periodic, 128, 4096), 4096);
  EXPECT_EQ(snapshot_interval(WindowStrategy::zero, 128, 4096), 0);
  EXPECT_EQ(parse_window_strategy("zero"), WindowStrategy::zero);
  EXPECT_ERROR(parse_window_strategy("none"), ErrorCode::invalid_argument, "full, periodic, zero");
}

TEST(DiskStore, ALostSecretForgetsEverything) {
  FaultFileSystem fs;
  const Text text = text_of(4 * kPage + 1);
  {
    Process p(fs);
    remember(p.kv, p.cache, text, {4 * kPage});
    p.cache.flush();
  }
  fs.set_content("/cache/secret", "short");
  Process p(fs);
  EXPECT_EQ(p.disk.statistics().files, 0U);
  EXPECT_EQ(p.cache.find("someone", text).position, 0);
}

TEST(DiskStore, NobodyElseMayReadTheSecretOrThePrompts) {
  const hadal::test::ScratchDirectory scratch;
  const Path directory = scratch / "cache";
  const Text text = text_of(4 * kPage + 1);
  {
    Process p(FileSystem::real(), {}, {}, kPage, directory);
    remember(p.kv, p.cache, text, {4 * kPage});
  }
  struct stat status{};
  ASSERT_EQ(::stat((directory / "secret").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  ASSERT_EQ(::stat(directory.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0700U);
  Process p(FileSystem::real(), {}, {}, kPage, directory);
  const PrefixCache::Hit hit = p.cache.find("someone", text);
  EXPECT_EQ(hit.position, 4 * kPage);
  expect_true_to(p.kv, hit, text);
}

}  // namespace
}  // namespace hadal::cache
