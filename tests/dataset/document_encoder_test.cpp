// Text and conversations become the tokens that a server would read, with the loss in its place.
#include "dataset/document_encoder.h"

#include <gmock/gmock.h>

#include "dataset/chat_document.h"
#include "dataset_fixture.h"
#include "protocol/message_json.h"
#include "protocol/prompt_encoder.h"
#include "train/data_shard_format.h"

namespace hadal::test {
namespace {

using dataset::content_key;
using dataset::DocumentEncoder;
using dataset::EncodeOptions;
using dataset::RawDocument;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

train::TokenDocument encoded(const RawDocument& document, const EncodeOptions& options = {}) {
  const DocumentEncoder encoder(small_tokenizer(), options);
  return *encoder.encode(document, "here", content_key(document.text));
}

std::string refusal(const RawDocument& document) {
  return error_of([&] { (void)encoded(document); }, ErrorCode::corrupt_data);
}

std::string text_of(const train::TokenDocument& document) {
  return small_tokenizer().decode(document.tokens);
}

// What a loss is taken on, with a bar between stretches.
std::string learnt(const train::TokenDocument& document) {
  std::string out;
  for (std::size_t i = 0; i < document.tokens.size(); ++i) {
    if (!document.loss[i]) continue;
    if (i > 0 && !document.loss[i - 1] && !out.empty()) out += "|";
    out += small_tokenizer().token_bytes(document.tokens[i]);
  }
  return out;
}

TEST(DocumentEncoder, PutsTextBetweenItsEnds) {
  const auto document = encoded(text_document("The cat.\n"));
  EXPECT_EQ(text_of(document), "<｜begin▁of▁sentence｜>The cat.\n<｜end▁of▁sentence｜>");
  EXPECT_TRUE(document.loss.empty());
  EXPECT_EQ(document.text_bytes, 9);
  EXPECT_EQ(document.flags, 0);
  EXPECT_EQ(encoded(json_line(R"({"text": "The cat.\n", "source": "x"})")).tokens, document.tokens);
}

TEST(DocumentEncoder, NothingInTextBecomesAControlToken) {
  const auto document = encoded(text_document("a</think><｜User｜>b"));
  const io::Tokenizer tokenizer = small_tokenizer();
  for (std::size_t i = 1; i + 1 < document.tokens.size(); ++i) {
    EXPECT_FALSE(tokenizer.is_special(document.tokens[i]));
  }
}

TEST(DocumentEncoder, RefusesWhatIsNoText) {
  EXPECT_THAT(refusal(text_document("")), AllOf(HasSubstr("here: is empty")));
  EXPECT_THAT(refusal(text_document(std::string("ab\0cd", 5))), HasSubstr("byte 2 is NUL"));
  EXPECT_THAT(refusal(text_document("abc\xFFz")), HasSubstr("byte 3 is 0xFF"));
  RawDocument late = text_document("ab\xC3");  // cut in the middle of a character
  late.offset = 1000;
  EXPECT_THAT(refusal(late), HasSubstr("byte 1002 is 0xC3"));
  EXPECT_THAT(refusal(json_line("{\"text\": \"x\"")), HasSubstr("here: "));
  EXPECT_THAT(refusal(json_line("{\"text\": 5}")), HasSubstr("wanted an object with \"text\""));
  EXPECT_THAT(refusal(json_line("[1]")), HasSubstr("wanted an object with \"text\""));
  EXPECT_THAT(refusal(json_line("{\"text\": \"a\\u0000b\"}")), HasSubstr("NUL"));
  const DocumentEncoder encoder(small_tokenizer(), {});
  EXPECT_FALSE(encoder.encode(json_line("{\"text\": \" \\n\"}"), "here", 1).has_value());
  RawDocument blank = text_document("\n \n");
  blank.line = 4;
  EXPECT_FALSE(encoder.encode(blank, "here", 1).has_value());
}

TEST(DocumentEncoder, ATokenizerWithoutControlTokensIsRefused) {
  std::string json = small_tokenizer_json();
  json.replace(json.find("<｜fim▁hole｜>"), std::string("<｜fim▁hole｜>").size(), "<other>");
  const io::Tokenizer tokenizer = io::Tokenizer::parse(json);
  EXPECT_NO_THROW(DocumentEncoder(tokenizer, {}));
  EXPECT_THAT(error_of([&] { const DocumentEncoder encoder(tokenizer, {.fim_rate = 0.1}); },
                       ErrorCode::unsupported),
              HasSubstr("<｜fim▁hole｜>"));
}

// Prefix, suffix and middle of such a document, put together again.
std::string unscrambled(std::string text) {
  const auto take = [&](const std::string& mark) {
    const std::size_t at = text.find(mark);
    EXPECT_NE(at, std::string::npos) << text;
    std::string part = text.substr(0, at);
    text.erase(0, at + mark.size());
    return part;
  };
  EXPECT_EQ(take("<｜fim▁begin｜>"), "<｜begin▁of▁sentence｜>");
  const std::string prefix = take("<｜fim▁hole｜>"), suffix = take("<｜fim▁end｜>");
  return prefix + take("<｜end▁of▁sentence｜>") + suffix;
}

TEST(DocumentEncoder, FillsInTheMiddle) {
  const EncodeOptions options{.seed = 3, .fim_rate = 0.25};
  int n_fim = 0;
  for (int i = 0; i < 400; ++i) {
    const std::string text = "The cät and 日本 " + std::to_string(i);
    const auto document = encoded(text_document(text), options);
    EXPECT_EQ(encoded(text_document(text), options).tokens, document.tokens);
    if ((document.flags & train::kFimDocument) == 0) continue;
    ++n_fim;
    EXPECT_EQ(unscrambled(text_of(document)), text);
    EXPECT_TRUE(document.loss.empty());
    EXPECT_EQ(document.text_bytes, std::ssize(text));
  }
  // 100 on average with a deviation of 8.7; five of those.
  EXPECT_GT(n_fim, 56);
  EXPECT_LT(n_fim, 144);
  const std::string text = "The cat and the dog";
  EXPECT_NE(encoded(text_document(text), {.seed = 1, .fim_rate = 1}).tokens,
            encoded(text_document(text), {.seed = 2, .fim_rate = 1}).tokens);
}

TEST(DocumentEncoder, CutsPunctuationFromLineBreaks) {
  const io::Tokenizer tokenizer = small_tokenizer();
  const auto joined = tokenizer.token_id(".\n");
  ASSERT_TRUE(joined.has_value());
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "cat.\n";
  const auto never = encoded(text_document(text));
  const auto some = encoded(text_document(text), {.split_rate = 0.1});
  const auto all = encoded(text_document(text), {.split_rate = 1});
  EXPECT_EQ(std::ranges::count(never.tokens, *joined), 1000);
  EXPECT_EQ(std::ranges::count(all.tokens, *joined), 0);
  // 900 on average with a deviation of 9.5.
  EXPECT_NEAR(std::ranges::count(some.tokens, *joined), 900, 48);
  EXPECT_EQ(text_of(some), text_of(never));
  EXPECT_EQ(text_of(all), text_of(never));
}

constexpr const char* kTalk = R"({"messages": [
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "And </think> the cat?"},
  {"role": "assistant", "reasoning_content": "Sat.", "content": "It sat."},
  {"role": "user", "content": "Then?"},
  {"role": "assistant", "reasoning_content": "Hm.", "content": "No."}]})";

RawDocument talk(std::string json = kTalk) {
  std::erase(json, '\n');
  return json_line(json);
}

TEST(ChatDocument, ALossIsTakenOnWhatTheAssistantWrote) {
  const auto document = encoded(talk());
  EXPECT_EQ(document.flags, train::kChatDocument);
  // The reasoning of the first answer is dropped, as the server drops it.
  EXPECT_EQ(learnt(document), "It sat.<｜end▁of▁sentence｜>|Hm.</think>No.<｜end▁of▁sentence｜>");
  EXPECT_EQ(learnt(encoded(talk(), {.chat_mode = dataset::ChatMode::chat})),
            "It sat.<｜end▁of▁sentence｜>|No.<｜end▁of▁sentence｜>");
}

TEST(ChatDocument, TokensAreThoseThatTheServerReads) {
  const auto json = protocol::Json::parse(kTalk);
  const auto conversation = protocol::conversation_from_json(*json.find("messages"));
  const auto prompt = protocol::encode_prompt(
      conversation, {.thinking_mode = protocol::ThinkingMode::thinking}, small_tokenizer());
  EXPECT_EQ(encoded(talk()).tokens, prompt.tokens);
}

constexpr const char* kTools = R"({"messages": [
  {"role": "user", "content": "Weather?"},
  {"role": "assistant", "reasoning_content": "Ask.", "content": "", "tool_calls": [
    {"id": "1", "function": {"name": "w", "arguments": "{\"city\": \"Rome\"}"}}]},
  {"role": "tool", "tool_call_id": "1", "content": "sunny"},
  {"role": "assistant", "reasoning_content": "Good.", "content": "Sun."},
  {"role": "user", "content": "Thanks"},
  {"role": "assistant", "content": "Bye."}],
 "tools": [{"type": "function", "function": {"name": "w"}}]})";

TEST(ChatDocument, LearnsCallsAndKeepsReasoningWithTools) {
  EXPECT_EQ(learnt(encoded(talk(kTools))),
            "Ask.</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"w\">\n"
            "<｜DSML｜parameter name=\"city\" string=\"true\">Rome</｜DSML｜parameter>\n"
            "</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>|"
            "Good.</think>Sun.<｜end▁of▁sentence｜>|</think>Bye.<｜end▁of▁sentence｜>");
}

TEST(ChatDocument, AWeightOfZeroLeavesAnAnswerOut) {
  std::string json = kTalk;
  const std::string first = R"("content": "It sat.")";
  json.replace(json.find(first), first.size(), first + R"(, "weight": 0)");
  EXPECT_EQ(learnt(encoded(talk(json))), "Hm.</think>No.<｜end▁of▁sentence｜>");
  EXPECT_EQ(encoded(talk(json)).tokens, encoded(talk()).tokens);
}

TEST(ChatDocument, ALineSaysItsModeAndEffort) {
  const std::string json = kTalk;
  const auto with = [&](const std::string& key) {
    return encoded(talk(json.substr(0, json.size() - 1) + ", " + key + "}"));
  };
  EXPECT_EQ(with(R"("thinking_mode": "chat")").tokens,
            encoded(talk(), {.chat_mode = dataset::ChatMode::chat}).tokens);
  EXPECT_EQ(with(R"("reasoning_effort": "none")").tokens,
            encoded(talk(), {.chat_mode = dataset::ChatMode::chat}).tokens);
  EXPECT_GT(with(R"("reasoning_effort": "max")").tokens.size(), encoded(talk()).tokens.size());
  EXPECT_THAT(refusal(json_line(R"({"messages": [{"role": "user", "content": "x"},
      {"role": "assistant", "content": "y"}], "thinking_mode": "loud"})")),
              HasSubstr("loud"));
}

TEST(ChatDocument, RefusesWhatTeachesNothingOrIsNoConversation) {
  EXPECT_THAT(refusal(json_line(R"({"messages": [{"role": "user", "content": "x"}]})")),
              AllOf(HasSubstr("here: "), HasSubstr("nothing to learn")));
  EXPECT_THAT(refusal(json_line(R"({"messages": {}})")), HasSubstr("wanted an array"));
  EXPECT_THAT(refusal(json_line(R"({"messages": [{"role": "cat", "content": "x"}]})")),
              HasSubstr("messages[0]"));
  EXPECT_THAT(refusal(json_line(R"({"messages": [{"role": "user", "content": "x"},
      {"role": "tool", "tool_call_id": "9", "content": "x"},
      {"role": "assistant", "content": "y"}]})")),
              HasSubstr("messages[1]"));
}

TEST(PlainTexts, AreWhatPeopleWrote) {
  EXPECT_THAT(dataset::plain_texts(text_document("abc"), "here"), ElementsAre("abc"));
  EXPECT_THAT(dataset::plain_texts(json_line("{\"text\": \"x\"}"), "here"), ElementsAre("x"));
  EXPECT_THAT(dataset::plain_texts(talk(), "here"),
              ElementsAre("Be short.", "And </think> the cat?", "It sat.", "Then?", "Hm.", "No."));
}

}  // namespace
}  // namespace hadal::test
