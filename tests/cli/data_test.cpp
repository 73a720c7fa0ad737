// hadal data and hadal tokenizer, as a user runs them.
#include <nlohmann/json.hpp>

#include "command.h"

namespace hadal::test {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Data : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(scratch_ / "notes");
    std::string text;
    for (int i = 0; i < 200; ++i) text += "The cat sat on mat " + std::to_string(i) + ".\n\n\n";
    write_text(scratch_ / "notes/a.txt", text);
    write_text(scratch_ / "notes/chats.jsonl",
               R"({"messages": [{"role": "user", "content": "Hi"}, )"
               R"({"role": "assistant", "reasoning_content": "So.", "content": "The cat."}]})"
               "\n");
  }
  [[nodiscard]] std::string path(const std::string& name) const {
    return (scratch_ / name).string();
  }
  const ScratchDirectory scratch_{"data"};
};

TEST_F(Data, TrainsATokenizerAndBuildsWithIt) {
  const CommandResult trained = hadal_command(
      {"tokenizer", "train", path("notes"), "--vocab-size", "300", "--out", path("tok")});
  EXPECT_EQ(trained.status, 0) << trained.err;
  EXPECT_THAT(trained.out, HasSubstr("tok/tokenizer.json: 300 tokens, 24 merges"));
  expect_refusal(hadal_command({"tokenizer", "train", path("notes"), "--vocab-size", "300", "--out",
                                path("tok")}),
                 "--force");

  const std::vector<std::string> build = {"data",        "build",        path("notes"),
                                          "--tokenizer", path("tok"),    "--document-separator",
                                          R"(\n\n\n)",   "--validation", "0.1",
                                          "--fim-rate",  "0.1",          "--out",
                                          path("set")};
  const CommandResult built = hadal_command(build);
  EXPECT_EQ(built.status, 0) << built.err;
  EXPECT_THAT(built.out, AllOf(HasSubstr("2 files"), HasSubstr("train: "),
                               HasSubstr("validation: "), HasSubstr("1 conversations")));
  expect_refusal(hadal_command(build), "holds a finished data set");

  const CommandResult stats = hadal_command(
      {"data", "stats", path("set"), "--json", "--top", "3", "--sequence-length", "64"});
  const Json json = Json::parse(stats.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << stats.err;
  EXPECT_EQ(json["vocab_size"], 300);
  EXPECT_EQ(json["splits"]["train"]["documents"].get<int>() +
                json["splits"]["validation"]["documents"].get<int>(),
            201);
  EXPECT_EQ(json["splits"]["train"]["frequent"].size(), 3U);
  EXPECT_GT(json["splits"]["train"]["packing"]["rows"], 10);
  const CommandResult text = hadal_command({"data", "stats", path("set")});
  EXPECT_THAT(text.out, AllOf(HasSubstr("bytes a token"), HasSubstr("█"),
                              HasSubstr("most frequent"), HasSubstr("FIM: ")));

  const CommandResult shown = hadal_command({"data", "show", path("set"), "--document", "0"});
  EXPECT_THAT(shown.out, testing::StartsWith("<｜begin▁of▁sentence｜>"));
  expect_refusal(hadal_command({"data", "show", path("set"), "--document", "900"}),
                 "there is no document 900");

  write_text(scratch_ / "set/train-00000.tok", "damaged");
  expect_refusal(hadal_command({"data", "stats", path("set")}), "train-00000.tok");
  std::filesystem::remove(scratch_ / "set/manifest.json");
  expect_refusal(hadal_command({"data", "stats", path("set")}), "has no manifest.json");
}

TEST_F(Data, ShowsWhatALossIsTakenOn) {
  const CommandResult built = hadal_command(
      {"data", "build", path("notes/chats.jsonl"), "--out", path("set"), "--model", kBootstrap});
  EXPECT_EQ(built.status, 0) << built.err;
  const CommandResult table = hadal_command({"data", "show", path("set"), "--table"});
  EXPECT_THAT(table.out, AllOf(HasSubstr("8181        \"<think>\""),
                               HasSubstr("8182  yes   \"</think>\""), HasSubstr("yes   \"The\"")));
}

TEST_F(Data, BadInputIsASentence) {
  const auto build = [&](const std::string& input, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"data", "build", path(input), "--out", path("bad")};
    words.insert(words.end(), more.begin(), more.end());
    const CommandResult result = hadal_command(words);
    std::filesystem::remove_all(scratch_ / "bad");
    return result;
  };
  write_text(scratch_ / "empty.txt", "");
  expect_refusal(build("empty.txt"), "empty.txt: is empty");
  write_text(scratch_ / "binary.txt", std::string("ab\0c", 4));
  expect_refusal(build("binary.txt"), "binary.txt: byte 2 is NUL");
  write_text(scratch_ / "latin.txt", "caf\xE9!");
  expect_refusal(build("latin.txt"), "latin.txt: byte 3 is 0xE9");
  write_text(scratch_ / "bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut\n");
  expect_refusal(build("bad.jsonl"), "bad.jsonl:2: ");
  expect_refusal(build("nowhere.txt"), "nowhere.txt");
  expect_refusal(build("notes", {"--tokenizer", path("nowhere.json")}), "nowhere.json");

  const CommandResult skipped = build("bad.jsonl", {"--skip-bad"});
  EXPECT_EQ(skipped.status, 0);
  EXPECT_THAT(skipped.err, AllOf(HasSubstr("left out: "), HasSubstr("bad.jsonl:2"),
                                 HasSubstr("1 document was left out")));
  expect_usage_error(build("notes", {"--validation", "2"}), "--validation");
  expect_usage_error(hadal_command({"data"}), "subcommand");
  expect_refusal(hadal_command({"tokenizer", "train", path("notes"), "--vocab-size", "9", "--out",
                                path("t.json")}),
                 "a vocabulary of 9 is not possible");
}

TEST(DataHelp, Teaches) {
  for (const char* name : {"build", "stats", "show"}) {
    EXPECT_THAT(hadal_command({"data", name, "--help"}).out,
                HasSubstr(std::string("Examples:\n  hadal data ") + name));
  }
  EXPECT_THAT(hadal_command({"tokenizer", "train", "--help"}).out,
              HasSubstr("Examples:\n  hadal tokenizer train"));
  EXPECT_THAT(
      hadal_command({"data", "build", "x", "--out", "y", "--seed", "7", "--print-config"}).out,
      HasSubstr("seed=7"));
}

}  // namespace
}  // namespace hadal::test
