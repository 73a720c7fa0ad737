// hadal replay: a journal from the outside.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "journal/writer.h"

namespace hadal::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class Replay : public ::testing::Test {
 protected:
  void SetUp() override {
    FileSystem& fs = FileSystem::real();
    journal::Writer writer(fs, log(), {}, journal::recover(fs, log()));
    journal::OpenRecord open;
    open.name = "done";
    open.api = "chat_completions";
    open.created = 1'700'000'000;
    open.prompt = {0, 65, 66};
    open.request = R"({"messages":[]})";
    const auto done = *writer.open(open);
    open.name = "half";
    const auto half = *writer.open(open);
    for (std::uint32_t i = 0; i < 3; ++i) {
      writer.commit({{.local = done, .index = i, .token = static_cast<TokenId>(300 + i)},
                     {.local = half, .index = i, .token = static_cast<TokenId>(400 + i)}},
                    {}, nullptr);
    }
    writer.commit({}, {{.local = done, .reason = journal::CloseReason::length}}, nullptr);
    ASSERT_TRUE(writer.flush());
  }
  [[nodiscard]] Path log() const { return scratch_.path() / "wal"; }
  [[nodiscard]] Path segment() const { return log() / "00000000000000000001.seg"; }
  CommandResult replay(std::vector<std::string> more) {
    more.insert(more.begin(), {"replay", log().string()});
    return hadal_command(more);
  }

 private:
  ScratchDirectory scratch_;
};

TEST_F(Replay, ListsStreamsWithTheirEnds) {
  const CommandResult r = replay({});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("done"));
  EXPECT_THAT(r.out, HasSubstr("length"));
  EXPECT_THAT(r.out, HasSubstr("2023-11-14T22:13:20Z"));
  EXPECT_THAT(r.out, HasSubstr("open"));
  const auto json = nlohmann::json::parse(replay({"--json"}).out);
  ASSERT_EQ(json["streams"].size(), 2u);
  EXPECT_EQ(json["streams"][0]["choices"][0]["finish"], "length");
  EXPECT_TRUE(json["streams"][1]["choices"][0]["finish"].is_null());
}

TEST_F(Replay, ShowsOneStreamWithItsText) {
  const CommandResult r = replay({"--stream", "done", "--json"});
  ASSERT_EQ(r.status, 0) << r.err;
  const auto json = nlohmann::json::parse(r.out);
  EXPECT_EQ(json["choices"][0]["token_ids"], (std::vector<int>{300, 301, 302}));
  EXPECT_FALSE(json["choices"][0]["text"].get<std::string>().empty());
  EXPECT_EQ(json["prompt_token_ids"], (std::vector<int>{0, 65, 66}));
  EXPECT_EQ(replay({"--stream", "half"}).status, 0);
  expect_refusal(replay({"--stream", "other"}), "has no stream \"other\"");
}

TEST_F(Replay, VerifyIsSilentAboutATornTailAndNamesDamage) {
  EXPECT_EQ(replay({"--verify"}).status, 0);
  {
    FileSystem& fs = FileSystem::real();
    journal::Writer writer(fs, log(), {}, journal::recover(fs, log()));  // a second segment
  }
  std::string text = read_text(segment());
  write_text(log() / "00000000000000000002.seg",
             read_text(log() / "00000000000000000002.seg") + "torn");
  CommandResult r = replay({"--verify"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("4 bytes, which no client has seen"));
  text[200] = static_cast<char>(text[200] ^ 1);
  write_text(segment(), text);
  expect_refusal(replay({"--verify"}), "00000000000000000001.seg");
  r = replay({"--repair"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_THAT(r.out, HasSubstr("set aside"));
  EXPECT_EQ(replay({"--verify"}).status, 0);
}

// No fingerprint is in its records: nobody knows who drew "half".
TEST_F(Replay, ResumesOnlyWithTheModelThatBegan) {
  for (int i = 0; i < 2; ++i) {  // the refusal leaves it as it was
    const CommandResult r = replay({"--resume"});
    expect_refusal(r, "begun by another model");
    EXPECT_THAT(r.err, HasSubstr("half: numerics unknown then, official now"));
  }
  EXPECT_THAT(replay({"--stream", "half"}).out, HasSubstr("3 tokens, open"));
}

TEST_F(Replay, RefusesWhatIsNoJournalOrInUse) {
  expect_refusal(hadal_command({"replay", "/nonexistent/wal"}), "no journal directory");
  const auto lock = FileSystem::real().lock(log() / "LOCK");
  expect_refusal(replay({"--repair"}), "is locked");
  EXPECT_EQ(replay({"--verify"}).status, 0);  // looking is allowed
}

}  // namespace
}  // namespace hadal::test
