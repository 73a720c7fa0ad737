// One list of promises, kept by the operating system's files and by the ones tests break.
#include "core/file.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <set>
#include <vector>

#include "core/error.h"
#include "support/failing_file_system.h"
#include "support/fault_file_system.h"

namespace hadal {
namespace {

std::string text_of(FileSystem& fs, const Path& path) {
  const auto bytes = fs.read_all(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

class EveryFileSystem : public ::testing::TestWithParam<bool> {
 protected:
  FileSystem& fs() {
    if (GetParam()) return FileSystem::real();
    return memory_;
  }
  void SetUp() override { fs().create_directories(root()); }
  [[nodiscard]] Path root() const { return scratch_.path() / "root"; }

 private:
  test::ScratchDirectory scratch_;
  test::FaultFileSystem memory_;
};
INSTANTIATE_TEST_SUITE_P(Real, EveryFileSystem, ::testing::Values(true));
INSTANTIATE_TEST_SUITE_P(InMemory, EveryFileSystem, ::testing::Values(false));

TEST_P(EveryFileSystem, AppendsWritesInPlaceAndTruncates) {
  const Path path = root() / "a";
  auto file = fs().create(path);
  file->append("hello ");
  file->append("world");
  file->write_at(0, bytes_of("J"));
  file->sync();
  EXPECT_EQ(text_of(fs(), path), "Jello world");
  file->truncate(5);
  file->append("!");
  file->sync_data();
  file->close();
  EXPECT_EQ(text_of(fs(), path), "Jello!");
  EXPECT_EQ(fs().file_size(path), 6u);
}

TEST_P(EveryFileSystem, PreallocatedSpaceIsZerosThatAppendsFill) {
  const Path path = root() / "a";
  auto file = fs().create(path);
  file->append("head");
  file->preallocate(16);
  EXPECT_EQ(fs().file_size(path), 16u);
  file->append("tail");
  file->sync_data();
  EXPECT_EQ(text_of(fs(), path), "headtail" + std::string(8, '\0'));
  file->truncate(8);
  file->close();
  EXPECT_EQ(text_of(fs(), path), "headtail");
}

TEST_P(EveryFileSystem, ReopenedFilesGoOnAtTheirEnd) {
  const Path path = root() / "a";
  fs().open_append(path)->append("one ");
  fs().open_append(path)->append("two");
  EXPECT_EQ(text_of(fs(), path), "one two");
  (void)fs().create(path);
  EXPECT_EQ(text_of(fs(), path), "");
}

TEST_P(EveryFileSystem, ReadsByPositionAndStopsAtTheEnd) {
  const Path path = root() / "a";
  auto out = fs().create(path);
  out->append("0123456789");
  const auto in = fs().open_read(path);
  std::array<std::byte, 4> part{};
  EXPECT_EQ(in->read(3, part), 4u);
  EXPECT_EQ(std::to_integer<char>(part[0]), '3');
  EXPECT_EQ(in->read(8, part), 2u);
  EXPECT_EQ(in->read(10, part), 0u);
  EXPECT_EQ(in->read(1000, part), 0u);
  out->append("ab");  // a reader sees what is written behind its back
  EXPECT_EQ(in->size(), 12u);
  EXPECT_EQ(in->read(8, part), 4u);
}

TEST_P(EveryFileSystem, ListsByNameWithSizes) {
  fs().create(root() / "b")->append("xyz");
  fs().create_directories(root() / "c" / "d");
  (void)fs().create(root() / "a");
  const auto entries = fs().list(root());
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].name, "a");
  EXPECT_EQ(entries[1].name, "b");
  EXPECT_EQ(entries[1].size, 3u);
  EXPECT_FALSE(entries[1].is_directory);
  EXPECT_EQ(entries[2].name, "c");
  EXPECT_TRUE(entries[2].is_directory);
}

TEST_P(EveryFileSystem, RemovesAndRenames) {
  fs().create(root() / "a")->append("x");
  fs().rename(root() / "a", root() / "b");
  EXPECT_FALSE(fs().exists(root() / "a"));
  EXPECT_TRUE(fs().exists(root() / "b"));
  fs().sync_directory(root());
  EXPECT_TRUE(fs().remove(root() / "b"));
  EXPECT_FALSE(fs().remove(root() / "b"));
  EXPECT_GT(fs().free_space(root()), 0u);
  fs().remove_all(root());
  EXPECT_FALSE(fs().exists(root()));
}

TEST_P(EveryFileSystem, ALockHasOneHolder) {
  auto first = fs().lock(root() / "LOCK");
  EXPECT_THROW((void)fs().lock(root() / "LOCK"), Error);
  first.reset();
  EXPECT_NE(fs().lock(root() / "LOCK"), nullptr);
}

TEST_P(EveryFileSystem, WhatIsMissingIsNamed) {
  for (const auto& attempt :
       std::vector<std::function<void()>>{[&] { (void)fs().open_read(root() / "nothing-here"); },
                                          [&] { (void)fs().read_all(root() / "nothing-here"); },
                                          [&] { (void)fs().list(root() / "nothing-here"); }}) {
    try {
      attempt();
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::not_found);
      EXPECT_NE(std::string(error.what()).find("nothing-here"), std::string::npos) << error.what();
    }
  }
}

// What the fault file system itself promises.

TEST(FaultFileSystem, PowerLossKeepsWhatWasSyncedAndDropsTheRest) {
  test::FaultFileSystem fs;
  fs.create_directories("d");
  auto file = fs.create("d/a");
  file->append("safe");
  file->sync();
  fs.sync_directory("d");
  file->append(" lost");
  (void)fs.create("d/never-synced");
  fs.power_loss();
  EXPECT_EQ(text_of(fs, "d/a"), "safe");
  EXPECT_FALSE(fs.exists("d/never-synced"));
  EXPECT_THROW(file->append("x"), Error);  // a handle of the machine that died
}

TEST(FaultFileSystem, TornPowerLossMayKeepAnySectorsOfWhatWasNotSynced) {
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    test::FaultFileSystem fs;
    fs.create_directories("d");
    auto file = fs.create("d/a");
    fs.sync_directory("d");
    file->preallocate(2048);
    file->sync();
    file->append(std::string(2048, 'x'));
    fs.power_loss(seed);
    const std::string text = text_of(fs, "d/a");
    ASSERT_EQ(text.size(), 2048u);
    outcomes.insert(text);
  }
  EXPECT_GT(outcomes.size(), 8u);  // of 16
}

TEST(FaultFileSystem, AFullDiskTakesWhatFits) {
  test::FaultFileSystem fs;
  fs.create_directories("d");
  fs.set_capacity(10);
  auto file = fs.create("d/a");
  file->append("12345678");
  EXPECT_EQ(fs.free_space("d"), 2u);
  EXPECT_THROW(file->append("abcd"), Error);
  EXPECT_EQ(text_of(fs, "d/a"), "12345678ab");
  fs.set_capacity(1000);
  file->append("!");
  EXPECT_TRUE(fs.remove("d/a"));
  EXPECT_EQ(fs.free_space("d"), 1000u);
}

TEST(FaultFileSystem, AKilledProcessWritesNoMore) {
  test::FaultFileSystem fs;
  fs.create_directories("d");
  auto file = fs.create("d/a");
  fs.kill_after_bytes(6);
  file->append("1234");
  EXPECT_THROW(file->append("5678"), Error);
  EXPECT_THROW(file->sync(), Error);
  EXPECT_THROW((void)fs.create("d/b"), Error);
  fs.restart();
  EXPECT_EQ(text_of(fs, "d/a"), "123456");
}

}  // namespace
}  // namespace hadal
