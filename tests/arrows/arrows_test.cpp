// The folders of src/ include only what ARCHITECTURE.md allows, and the check notices when they do
// not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "arrows/include_check.h"

namespace hadal::arrows {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

Rows real_rows() {
  return rows_of_architecture(text_of(HADAL_SOURCE_DIR "/ARCHITECTURE.md"));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(Arrows, EveryIncludeIsAllowedByTheTable) {
  const Report report = check_tree(HADAL_SOURCE_DIR "/src", closure(real_rows()), library_rules());
  EXPECT_THAT(report.violations, IsEmpty()) << joined(report.violations);
  // A check that looked at nothing would pass too.
  EXPECT_GT(report.n_files, 100);
  EXPECT_GT(report.n_arrows, 100);
}

TEST(Arrows, LinkLinesAreTheTable) {
  const Rows linked = closure(rows_of_cmake(text_of(HADAL_SOURCE_DIR "/CMakeLists.txt")));
  Rows documented = closure(real_rows());
  documented.erase("cli");  // the program, not a layer
  EXPECT_EQ(linked, documented);
}

TEST(Arrows, TheForbiddenOnesAreForbidden) {
  const Rows reachable = closure(real_rows());
  EXPECT_FALSE(reachable.at("kernels").contains("ops"));
  EXPECT_FALSE(reachable.at("kernels").contains("model"));
  EXPECT_FALSE(reachable.at("ops").contains("model"));
  EXPECT_FALSE(reachable.at("model").contains("cache"));
  EXPECT_FALSE(reachable.at("engine").contains("protocol"));
  EXPECT_FALSE(reachable.at("protocol").contains("model"));
  for (const auto& [folder, all] : reachable) {
    EXPECT_EQ(all.contains("cli"), folder == "cli") << folder;
  }
}

// A tree of three folders, top -> middle -> ground, and a library that only ground may use.
class FakeTree : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "hadal_arrows_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr) << name;
    root_ = name;
    write("ground/base.h", "#include <vector>\n#include <json/value.h>\n");
    write("middle/part.cpp", "#include \"middle/part.h\"\n#include \"ground/base.h\"\n");
    write("top/main.cpp", "#include \"middle/part.h\"\n  #  include \"ground/base.h\"\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }

  Report check() {
    return check_tree(root_.string(),
                      closure({{"ground", {}}, {"middle", {"ground"}}, {"top", {"middle"}}}),
                      {{"json/", {"ground/", "top/reader.cpp"}, "JSON stays on the ground"}});
  }

  fs::path root_;
};

TEST_F(FakeTree, IsCleanAsWritten) {
  const Report report = check();
  EXPECT_THAT(report.violations, IsEmpty());
  EXPECT_EQ(report.n_files, 3);
  EXPECT_EQ(report.n_arrows, 3);
}

TEST_F(FakeTree, AnArrowUpwardsIsNamedWithFileAndLine) {
  write("ground/base.cpp", "// one\n\n#include \"top/main.h\"\n");
  EXPECT_THAT(check().violations,
              ElementsAre("ground/base.cpp:3: ground may not include \"top/main.h\"; it may "
                          "include ground"));
}

TEST_F(FakeTree, IncludesLeaveSrcNowhere) {
  write("top/a.cpp", "#include \"tests/support/context.h\"\n");
  write("top/b.cpp", "#include \"../bench/timer.h\"\n");
  write("top/c.cpp", "#include \"main.h\"\n");
  EXPECT_THAT(check().violations,
              ElementsAre(HasSubstr("top/a.cpp:1: includes \"tests/support/context.h\""),
                          HasSubstr("top/b.cpp:1: includes \"../bench/timer.h\""),
                          HasSubstr("top/c.cpp:1: includes \"main.h\"")));
}

TEST_F(FakeTree, LibrariesStayInTheirPlaces) {
  write("top/reader.cpp", "#include <json/value.h>\n");  // allowed by name
  write("middle/part.h", "#include <json/value.h>\n");
  EXPECT_THAT(check().violations,
              ElementsAre(AllOf(HasSubstr("middle/part.h:1: <json/value.h> belongs in ground/"),
                                HasSubstr("JSON stays on the ground"))));
}

TEST_F(FakeTree, AFolderWithoutARowIsNamed) {
  write("attic/old.cpp", "#include \"ground/base.h\"\n");
  EXPECT_THAT(check().violations,
              ElementsAre("attic/old.cpp: folder attic has no row in the table"));
}

TEST_F(FakeTree, DeeperFoldersAndCudaSourcesCountToo) {
  write("ground/cuda/fast.cu", "#include \"middle/part.h\"\n");
  EXPECT_THAT(check().violations, ElementsAre(HasSubstr("ground/cuda/fast.cu:1: ground may not")));
}

TEST(ArrowTable, IsReadFromMarkdown) {
  const Rows rows = rows_of_architecture(
      "text\n\n| folder | what it is | may include |\n| --- | --- | --- |\n"
      "| `a` | the `b` of things | nothing |\n| `b` | x | `a` |\n| `c` | y | everything |\n\n"
      "| `d` | another table | `a` |\n");
  EXPECT_EQ(rows, (Rows{{"a", {}}, {"b", {"a"}}, {"c", {"a", "b"}}}));
}

TEST(ArrowTable, WithoutATableOrWithAnUnreadableRowThrows) {
  EXPECT_THROW((void)rows_of_architecture("no table here\n"), std::runtime_error);
  EXPECT_THROW((void)rows_of_architecture("| folder | may include |\n| `a` | some things |\n"),
               std::runtime_error);
}

TEST(ArrowTable, CirclesAndUnknownFoldersThrow) {
  EXPECT_THROW((void)closure({{"a", {"b"}}, {"b", {"a"}}}), std::runtime_error);
  EXPECT_THROW((void)closure({{"a", {"b"}}}), std::runtime_error);
}

TEST(ArrowTable, IsReadFromCMake) {
  EXPECT_EQ(rows_of_cmake("hadal_layer(core fmt::fmt)\nhadal_layer(io hadal_core PkgConfig::X)\n"),
            (Rows{{"core", {}}, {"io", {"core"}}}));
}

}  // namespace
}  // namespace hadal::arrows
