#include "protocol/answer_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/error.h"
#include "support/failing_file_system.h"

namespace hadal::protocol {
namespace {

using Tokens = std::vector<TokenId>;

RememberedAnswer answer_of(Tokens tokens, std::string content, std::vector<ToolCall> calls = {}) {
  RememberedAnswer answer;
  answer.tokens = std::move(tokens);
  answer.content = std::move(content);
  answer.reasoning = "because";
  answer.calls = std::move(calls);
  return answer;
}

Message message_of(std::string content, std::vector<ToolCall> calls = {}) {
  Message message;
  message.role = Role::assistant;
  message.content = std::move(content);
  message.tool_calls = std::move(calls);
  return message;
}

PromptDigest digest_of(const Tokens& prompt, std::string_view domain = "") {
  PromptDigest digest(domain);
  digest.extend(prompt);
  return digest;
}

// The tokens found, or none.
Tokens found(AnswerMemory& memory, const Message& message, const Tokens& prompt,
             ThinkingMode mode = ThinkingMode::thinking, std::string_view domain = "") {
  const auto tokens = memory.find(message, mode, digest_of(prompt, domain));
  return tokens ? *tokens : Tokens{};
}

TEST(AnswerMemory, ArgumentsAreComparedByMeaning) {
  const std::pair<const char*, const char*> same[] = {
      {R"({"a": [1,2], "b": 1e3})", R"({"b":1000,"a":[1, 2]})"},
      {R"({"k": "\u4f60"})", R"({"k":"你"})"},
      {R"({"x": 1.50})", R"({"x": 1.5})"},
      {R"({"x": -0})", R"({"x": 0})"},
      {R"({"x": -0.0})", R"({"x": 0})"},
      {R"({"x": 1e20})", R"({"x": 100000000000000000000})"},
      {"", "{}"},
      {" null ", "{ }"},
      {"not json", "not json"}};
  for (const auto& [a, b] : same) EXPECT_TRUE(same_arguments(a, b)) << a << " and " << b;
  const std::pair<const char*, const char*> different[] = {
      {R"({"a": [1,2]})", R"({"a": [2,1]})"},
      {R"({"a": 1})", R"({"a": "1"})"},
      {R"({"a": 1})", R"({"a": true})"},
      {R"({"a": 1})", R"({"a": 1, "b": null})"},
      {R"({"x": 123456789012345678901234567890})", R"({"x": 123456789012345678901234567891})"},
      {R"({"x": 0.1})", R"({"x": 0.10000000000000002})"},
      {"{}", "[]"},
      {"not json", "not  json"}};
  for (const auto& [a, b] : different) EXPECT_FALSE(same_arguments(a, b)) << a << " and " << b;
}

TEST(AnswerMemory, FindsByCallId) {
  AnswerMemory memory;
  const std::vector<ToolCall> calls{{"call_1", "f", R"({"n": [1,2]})"}, {"call_2", "g", ""}};
  memory.remember(answer_of({7, 8, 1}, "look", calls), Tokens{3, 4}, "");
  const Tokens elsewhere{99};  // the id alone decides, whatever the prompt was

  EXPECT_EQ(
      found(memory, message_of("look", {{"call_1", "f", R"({"n":[1, 2]})"}, {"call_2", "g", "{}"}}),
            elsewhere),
      (Tokens{7, 8, 1}));
  // Content beside calls often gets lost, and spaces around it.
  EXPECT_FALSE(found(memory, message_of("", calls), elsewhere).empty());
  EXPECT_FALSE(found(memory, message_of(" look\n", calls), elsewhere).empty());

  const auto refused = [&](const Message& message) {
    return found(memory, message, elsewhere).empty();
  };
  EXPECT_TRUE(refused(message_of("other words", calls)));
  EXPECT_TRUE(refused(message_of("look", {calls[0]})));
  EXPECT_TRUE(refused(message_of("look", {calls[1], calls[0]})));
  EXPECT_TRUE(refused(message_of("look", {{"call_1", "f", R"({"n": [1, 3]})"}, calls[1]})));
  EXPECT_TRUE(refused(message_of("look", {{"call_1", "h", R"({"n": [1, 2]})"}, calls[1]})));
  EXPECT_TRUE(
      refused(message_of("look", {{"call_1", "f", R"({"n": [1, 2]})"}, {"call_9", "g", ""}})));
  EXPECT_TRUE(refused(message_of("look", {{"call_9", "f", R"({"n": [1, 2]})"}, calls[1]})));
  EXPECT_EQ(memory.stats().hits, 3u);
  EXPECT_EQ(memory.stats().misses, 7u);
}

TEST(AnswerMemory, ReasoningMayBeMissingButNotChanged) {
  AnswerMemory memory;
  memory.remember(answer_of({7, 1}, "yes"), Tokens{3}, "");
  Message message = message_of("yes");
  EXPECT_FALSE(found(memory, message, {3}).empty());
  message.reasoning_content = "because";
  EXPECT_FALSE(found(memory, message, {3}).empty());
  message.reasoning_content = "for another reason";
  EXPECT_TRUE(found(memory, message, {3}).empty());
}

TEST(AnswerMemory, OnlyBehindTheHeaderItWasSampledBehind) {
  AnswerMemory memory;
  memory.remember(answer_of({7, 1}, "yes"), Tokens{3}, "");
  EXPECT_TRUE(found(memory, message_of("yes"), {3}, ThinkingMode::chat).empty());
}

TEST(AnswerMemory, FindsByPromptAndWords) {
  AnswerMemory memory;
  memory.remember(answer_of({7, 1}, "yes"), Tokens{3, 4}, "alice");
  const auto finds = [&](const std::string& words, const Tokens& prompt, std::string_view domain) {
    return !found(memory, message_of(words), prompt, ThinkingMode::thinking, domain).empty();
  };
  EXPECT_TRUE(finds("yes", {3, 4}, "alice"));
  EXPECT_FALSE(finds("no", {3, 4}, "alice"));
  EXPECT_FALSE(finds("yes", {3, 5}, "alice"));
  EXPECT_FALSE(finds("yes", {3}, "alice"));
  EXPECT_FALSE(finds("yes", {3, 4}, "bob"));
  // Calls whose ids somebody changed are still the calls of that answer.
  memory.remember(answer_of({9, 1}, "", {{"call_1", "f", "{}"}}), Tokens{5}, "alice");
  EXPECT_EQ(found(memory, message_of("", {{"x", "f", ""}}), {5}, ThinkingMode::thinking, "alice"),
            (Tokens{9, 1}));
}

TEST(AnswerMemory, FindsByPointer) {
  AnswerMemory memory;
  RememberedAnswer answer = answer_of({7, 1}, "yes");
  answer.pointer = "answer_abc";
  memory.remember(answer, Tokens{3}, "");
  Message message = message_of("yes");
  message.answer_pointer = "answer_abc";
  EXPECT_FALSE(found(memory, message, {99}).empty());
  message.content = "no";
  EXPECT_TRUE(found(memory, message, {99}).empty());
  message.content = "";  // nothing else says which answer this is
  EXPECT_TRUE(found(memory, message, {99}).empty());
}

// However the tokens are handed over, also across the blocks of the chain.
TEST(AnswerMemory, DigestDependsOnTokensOnly) {
  Tokens tokens(5000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i * 7919 % 8192);
  const auto whole = digest_of(tokens).answer_key("x", {});
  for (const std::size_t step : {1u, 1023u, 1024u, 1025u, 3000u}) {
    PromptDigest digest("");
    for (std::size_t at = 0; at < tokens.size(); at += step) {
      digest.extend(std::span(tokens).subspan(at, std::min(step, tokens.size() - at)));
    }
    EXPECT_EQ(digest.answer_key("x", {}), whole) << step;
  }
  for (const std::size_t n : {0u, 1u, 1023u, 1024u, 1025u, 2048u}) {
    EXPECT_NE(digest_of(Tokens(n, 0)).answer_key("x", {}),
              digest_of(Tokens(n + 1, 0)).answer_key("x", {}));
  }
}

TEST(AnswerMemory, ForgetsTheLeastRecentlyUsed) {
  AnswerMemoryOptions options;
  options.max_ids = 6;  // three answers: an id and a prompt each
  AnswerMemory memory(options);
  const auto name = [](int i) { return "call_" + std::to_string(i); };
  const auto remember = [&](int i) {
    memory.remember(answer_of({i, 1}, "", {{name(i), "f", ""}}), Tokens{1000 + i}, "");
  };
  const auto knows = [&](int i) {
    return !found(memory, message_of("", {{name(i), "f", ""}}), {}).empty();
  };
  for (int i = 0; i < 3; ++i) remember(i);
  EXPECT_TRUE(knows(0));  // used: 1 is the oldest now
  remember(3);
  EXPECT_FALSE(knows(1));
  EXPECT_TRUE(knows(0) && knows(2) && knows(3));
  EXPECT_EQ(memory.stats().n_ids, 6u);
  EXPECT_EQ(memory.stats().n_answers, 3u);
}

TEST(AnswerMemory, ForgetsByBytesToo) {
  AnswerMemoryOptions options;
  options.max_bytes = 100'000;
  AnswerMemory memory(options);
  for (int i = 0; i < 100; ++i) {
    memory.remember(answer_of(Tokens(1000, i), std::to_string(i)), Tokens{i}, "");
    ASSERT_LE(memory.stats().nbytes, options.max_bytes);
  }
  EXPECT_GT(memory.stats().n_answers, 15u);
  EXPECT_FALSE(found(memory, message_of("99"), {99}).empty());
}

TEST(AnswerMemory, TheNewestAnswerOfANameCounts) {
  AnswerMemory memory;
  for (int i = 0; i < 50; ++i) memory.remember(answer_of({i, 1}, "same"), Tokens{3}, "");
  EXPECT_EQ(found(memory, message_of("same"), {3}), (Tokens{49, 1}));
  EXPECT_EQ(memory.stats().n_answers, 1u);  // nobody can ask for the others
}

class AnswerFile : public testing::Test {
 protected:
  [[nodiscard]] AnswerMemoryOptions options() {
    AnswerMemoryOptions out;
    out.file = directory_ / "answers";
    out.fingerprint = "vocabulary 1";
    return out;
  }
  void remember(AnswerMemory& memory, int i) {
    memory.remember(answer_of({i, 500, 1}, "w" + std::to_string(i), {{call(i), "f", "{}"}}),
                    Tokens{i}, "");
  }
  bool knows(AnswerMemory& memory, int i) {
    return found(memory, message_of("w" + std::to_string(i), {{call(i), "f", ""}}), {}) ==
           Tokens{i, 500, 1};
  }
  static std::string call(int i) { return "call_" + std::to_string(i); }
  int n_known(AnswerMemory& memory, int of) {
    int n = 0;
    for (int i = 0; i < of; ++i) n += knows(memory, i) ? 1 : 0;
    return n;
  }
  test::ScratchDirectory directory_;
};

TEST_F(AnswerFile, SurvivesARestart) {
  for (int start = 0; start < 3; ++start) {
    AnswerMemory memory(options());
    EXPECT_EQ(n_known(memory, 30), start * 10);
    EXPECT_EQ(memory.stats().skipped_bytes, 0u);
    for (int i = 0; i < 10; ++i) remember(memory, start * 10 + i);
  }
}

TEST_F(AnswerFile, AKilledProcessLosesNothing) {
  AnswerMemory memory(options());
  remember(memory, 0);
  const std::string left_behind = read_text(options().file);  // before anything is closed
  AnswerMemoryOptions next = options();
  next.file = directory_ / "next";
  test::write_text(next.file, left_behind);
  AnswerMemory again(next);
  EXPECT_TRUE(knows(again, 0));
}

TEST_F(AnswerFile, AnotherVocabularyStartsEmpty) {
  {
    AnswerMemory memory(options());
    remember(memory, 0);
  }
  AnswerMemoryOptions other = options();
  other.fingerprint = "vocabulary 2";
  AnswerMemory memory(other);
  EXPECT_FALSE(knows(memory, 0));
  EXPECT_GT(memory.stats().skipped_bytes, 0u);
  remember(memory, 1);
  EXPECT_TRUE(knows(memory, 1));
}

// The file cut at every byte of its last record, and with one byte changed everywhere before it:
// what is lost is at most the record that was hit, and nothing is misread.
TEST_F(AnswerFile, DamageCostsOneRecord) {
  constexpr std::size_t kHeader = 28;
  {
    AnswerMemory memory(options());
    for (int i = 0; i < 2; ++i) remember(memory, i);
  }
  const std::string whole = read_text(options().file);
  const std::size_t last = kHeader + (whole.size() - kHeader) / 2;
  for (std::size_t n = last; n < whole.size(); ++n) {
    test::write_text(options().file, whole.substr(0, n));
    AnswerMemory memory(options());
    ASSERT_EQ(n_known(memory, 2), 1) << n;
    ASSERT_EQ(memory.stats().skipped_bytes, n - last);
  }
  for (std::size_t at = 0; at < last; at += at < kHeader ? 9 : 1) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    test::write_text(options().file, damaged);
    AnswerMemory memory(options());
    ASSERT_EQ(n_known(memory, 2), at < kHeader ? 0 : 1) << at;
    ASSERT_GT(memory.stats().skipped_bytes, 0u) << at;
  }
}

TEST_F(AnswerFile, GoesOnBehindATornRecord) {
  {
    AnswerMemory memory(options());
    for (int i = 0; i < 2; ++i) remember(memory, i);
  }
  const std::string whole = read_text(options().file);
  test::write_text(options().file, whole.substr(0, whole.size() - 3));
  {
    AnswerMemory memory(options());
    remember(memory, 2);
  }
  AnswerMemory memory(options());
  EXPECT_TRUE(knows(memory, 0));
  EXPECT_FALSE(knows(memory, 1));
  EXPECT_TRUE(knows(memory, 2));
}

TEST_F(AnswerFile, DoesNotGrowForEver) {
  AnswerMemoryOptions small = options();
  small.max_bytes = 50'000;
  AnswerMemory memory(small);
  for (int i = 0; i < 400; ++i) {
    memory.remember(answer_of(Tokens(2000, i), std::to_string(i)), Tokens{i}, "");
  }
  EXPECT_LT(read_text(small.file).size(), 1'300'000u);  // 400 of them take 3.2 MB
  AnswerMemory again(small);
  EXPECT_FALSE(found(again, message_of("399"), {399}).empty());
}

TEST_F(AnswerFile, AFullDiskCostsTheFileOnly) {
  test::FailingFileSystem disk(6);
  AnswerMemoryOptions failing = options();
  failing.file_system = &disk;
  AnswerMemory memory(failing);
  for (int i = 0; i < 10; ++i) remember(memory, i);
  EXPECT_EQ(n_known(memory, 10), 10);
  EXPECT_THAT(memory.stats().file_error, testing::HasSubstr("No space left"));
  AnswerMemory again(options());
  const int kept = n_known(again, 10);
  EXPECT_GT(kept, 0);
  EXPECT_LT(kept, 10);
}

TEST(AnswerMemory, ManyThreads) {
  AnswerMemoryOptions options;
  options.max_ids = 40;
  AnswerMemory memory(options);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&memory, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string words = std::to_string(i % 30);
        memory.remember(answer_of({i % 30, 1}, words), Tokens{t}, "");
        const Tokens tokens = found(memory, message_of(words), {t});
        EXPECT_TRUE(tokens.empty() || tokens == (Tokens{i % 30, 1}));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(memory.stats().n_ids, 40u);
}

}  // namespace
}  // namespace hadal::protocol
