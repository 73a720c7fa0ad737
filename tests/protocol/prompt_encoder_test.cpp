#include "protocol/prompt_encoder.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "protocol/answer_memory.h"
#include "protocol/chat_format.h"
#include "vectors.h"

namespace hadal::protocol {
namespace {

using Tokens = std::vector<TokenId>;
using test::TestJson;

const io::Tokenizer& tokenizer() {
  static const io::Tokenizer loaded =
      io::Tokenizer::load(HADAL_SOURCE_DIR "/models/hadal-bootstrap/tokenizer.json");
  return loaded;
}

// Text as a model may sample it: special tokens whole, all else cut every few characters.
Tokens oddly_cut(std::string_view text, std::size_t every) {
  Tokens out;
  const auto plain = [&](std::string_view run) {
    while (!run.empty()) {
      std::size_t n = std::min(every, run.size());
      while (n < run.size() && (static_cast<unsigned char>(run[n]) & 0xC0U) == 0x80U) ++n;
      const Tokens piece = tokenizer().encode(run.substr(0, n), io::SpecialTokens::ignore);
      out.insert(out.end(), piece.begin(), piece.end());
      run.remove_prefix(n);
    }
  };
  constexpr std::string_view kSpecial[] = {"｜DSML｜", "</think>", "<｜end▁of▁sentence｜>"};
  while (!text.empty()) {
    std::size_t at = std::string_view::npos;
    std::string_view special;
    for (const std::string_view candidate : kSpecial) {
      const std::size_t found = text.find(candidate);
      if (found < at) at = found, special = candidate;
    }
    plain(text.substr(0, std::min(at, text.size())));
    if (special.empty()) break;
    out.push_back(*tokenizer().token_id(special));
    text.remove_prefix(at + special.size());
  }
  return out;
}

bool continues(const Tokens& prompt, const Tokens& before, const Tokens& sampled) {
  return prompt.size() > before.size() + sampled.size() &&
         std::equal(before.begin(), before.end(), prompt.begin()) &&
         std::equal(sampled.begin(), sampled.end(),
                    prompt.begin() + static_cast<std::ptrdiff_t>(before.size()));
}

// As a client's JSON library hands the arguments back.
std::string through_a_client(const std::string& arguments) {
  std::string out = Json::parse(arguments).dump();
  if (const std::size_t at = out.find("1000.0"); at != std::string::npos) {
    out.replace(at, 6, "1000");  // as JavaScript prints it
  }
  return out;
}

Conversation agent_conversation() {
  Conversation conversation = conversation_from_json(Json::parse(
      R"([{"role": "system", "content": "You help."}, {"role": "user", "content": "Do it"}])"));
  attach_tools(conversation, {Json::parse(R"({"name": "f", "parameters": {}})"),
                              Json::parse(R"({"name": "ping", "parameters": {}})")});
  return conversation;
}

// One sampled turn: remembers it and puts what a client sends next behind the conversation.
struct Turn {
  Tokens prompt, sampled;
};
Turn play(Conversation& conversation, const RenderOptions& options, AnswerMemory& memory,
          const std::string& completion, std::size_t cut, int round) {
  Turn turn;
  turn.prompt = encode_prompt(conversation, options, tokenizer(), {.memory = &memory}).tokens;
  turn.sampled = oddly_cut(completion + "<｜end▁of▁sentence｜>", cut);

  DsmlOptions parse;
  parse.thinking_mode = options.thinking_mode;
  parse.tools = {{"f", {}}, {"ping", {}}};
  const ParsedMessage parsed = parse_completion(completion, parse);
  RememberedAnswer answer;
  answer.tokens = turn.sampled;
  answer.mode = options.thinking_mode;
  answer.content = parsed.content;
  answer.reasoning = parsed.reasoning_content;
  answer.calls = parsed.tool_calls;
  for (std::size_t i = 0; i < answer.calls.size(); ++i) {
    answer.calls[i].id = fmt::format("call_{}_{}", round, i);
  }
  memory.remember(answer, turn.prompt, "");

  Message assistant;
  assistant.role = Role::assistant;
  assistant.content = parsed.content;
  assistant.reasoning_content = parsed.reasoning_content;
  assistant.tool_calls = answer.calls;
  for (ToolCall& call : assistant.tool_calls) call.arguments = through_a_client(call.arguments);
  conversation.messages.push_back(assistant);
  for (const ToolCall& call : assistant.tool_calls) {
    Message result;
    result.role = Role::tool;
    result.tool_call_id = call.id;
    result.content = fmt::format("result {}", round);
    conversation.messages.push_back(result);
  }
  if (assistant.tool_calls.empty()) {
    Message question;
    question.content = fmt::format("And then? {}", round);
    conversation.messages.push_back(question);
  }
  return turn;
}

void expect_same_ids_as_the_tokenizer(const char* file) {
  const auto vectors = test::load_vectors(file);
  for (const auto& c : vectors["cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    AnswerMemory empty;
    for (const bool trust : {false, true}) {
      RenderOptions options = test::reference_options(c);
      options.trust_special_tokens = trust;
      const Conversation conversation = test::conversation(c["messages"]);
      const Tokens expected = tokenizer().encode(render(conversation, options));
      EXPECT_EQ(encode_prompt(conversation, options, tokenizer()).tokens, expected);
      EXPECT_EQ(encode_prompt(conversation, options, tokenizer(), {.memory = &empty}).tokens,
                expected);
    }
  }
}

TEST(PromptEncoder, WithoutMemoryEqualsTheTokenizer) {
  expect_same_ids_as_the_tokenizer("official_encode.json");
  expect_same_ids_as_the_tokenizer("encode_extra.json");
}

// Every form of the vectors that re-rendering would change, cut into tokens in odd places, in one
// growing tool loop: each prompt continues the one before it and its sampled tokens.
TEST(PromptEncoder, ToolLoopContinuesWhatWasSampled) {
  const auto vectors = test::load_vectors("roundtrip.json");
  for (const std::size_t cut : {1u, 2u, 5u, 1000u}) {
    SCOPED_TRACE(cut);
    Conversation conversation = agent_conversation();
    AnswerMemory memory;
    std::optional<Turn> before;
    int round = 0;
    for (const auto& c : vectors["cases"]) {
      SCOPED_TRACE(test::text(c, "id"));
      const Turn turn = play(conversation, {}, memory,
                             "thinking it over</think>" + test::text(c, "sampled"), cut, round++);
      EXPECT_TRUE(!before || continues(turn.prompt, before->prompt, before->sampled));
      before = turn;
    }
    // The same without a memory, which proves that the cases need it.
    const Tokens canonical = encode_prompt(conversation, {}, tokenizer()).tokens;
    EXPECT_FALSE(continues(canonical, before->prompt, before->sampled));

    const EncodedPrompt last = encode_prompt(conversation, {}, tokenizer(), {.memory = &memory});
    EXPECT_TRUE(continues(last.tokens, before->prompt, before->sampled));
    EXPECT_EQ(last.n_answers, vectors["cases"].size());
    EXPECT_EQ(last.n_remembered, vectors["cases"].size());
  }
}

// Reasoning that a client leaves out comes back from the memory.
TEST(PromptEncoder, RecoversReasoning) {
  Conversation conversation = agent_conversation();
  AnswerMemory memory;
  const Turn call = play(conversation, {}, memory,
                         "why not</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke "
                         "name=\"ping\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
                         3, 0);
  const Turn words = play(conversation, {}, memory, "aha</think>Done: 1234", 1, 1);
  EXPECT_TRUE(continues(words.prompt, call.prompt, call.sampled));
  for (Message& message : conversation.messages) message.reasoning_content.clear();
  const Tokens next = encode_prompt(conversation, {}, tokenizer(), {.memory = &memory}).tokens;
  EXPECT_TRUE(continues(next, words.prompt, words.sampled));
}

TEST(PromptEncoder, EditedCallsAreRenderedAsTheClientWroteThem) {
  Conversation conversation = agent_conversation();
  AnswerMemory memory;
  const auto vectors = test::load_vectors("roundtrip.json");
  static_cast<void>(play(conversation, {}, memory,
                         "r</think>" + test::text(vectors["cases"][1], "sampled"), 2, 0));
  conversation.messages[2].tool_calls[0].arguments = R"({"n": [1, 3]})";
  const EncodedPrompt edited = encode_prompt(conversation, {}, tokenizer(), {.memory = &memory});
  EXPECT_EQ(edited.n_remembered, 0u);
  EXPECT_EQ(edited.tokens, tokenizer().encode(render(conversation, {})));
}

TEST(PromptEncoder, ChatModeContinuesToo) {
  RenderOptions chat;
  chat.thinking_mode = ThinkingMode::chat;
  Conversation conversation =
      conversation_from_json(Json::parse(R"([{"role": "user", "content": "Hello"}])"));
  AnswerMemory memory;
  const Turn first = play(conversation, chat, memory, "Hello there, friend", 1, 0);
  const Turn second = play(conversation, chat, memory, "Good bye", 1, 1);
  EXPECT_TRUE(continues(second.prompt, first.prompt, first.sampled));
}

// In drop mode the header of an earlier answer closes the reasoning: what was sampled behind an
// open one has no place there. The prompts share what stands before the think tag.
TEST(PromptEncoder, DroppedReasoningIsNotPutBack) {
  Conversation conversation =
      conversation_from_json(Json::parse(R"([{"role": "user", "content": "Hello"}])"));
  AnswerMemory memory;
  const EncodedPrompt first = encode_prompt(conversation, {}, tokenizer(), {.memory = &memory});
  static_cast<void>(play(conversation, {}, memory, "hm</think>Hello there", 1, 0));
  const EncodedPrompt second = encode_prompt(conversation, {}, tokenizer(), {.memory = &memory});
  EXPECT_EQ(second.n_remembered, 0u);
  EXPECT_EQ(second.tokens, tokenizer().encode(render(conversation, {})));
  ASSERT_EQ(first.think_token_position, static_cast<std::int64_t>(first.tokens.size()) - 1);
  EXPECT_EQ(first.tokens.back(), *tokenizer().token_id("<think>"));
  EXPECT_TRUE(std::equal(first.tokens.begin(), first.tokens.end() - 1, second.tokens.begin()));
  EXPECT_NE(first.tokens.back(), second.tokens[first.tokens.size() - 1]);
}

TEST(PromptEncoder, Places) {
  Conversation conversation = conversation_from_json(Json::parse(R"([
      {"role": "system", "content": "S one two"},
      {"role": "user", "content": "first question"},
      {"role": "user", "content": "and more"},
      {"role": "assistant", "content": "answer"},
      {"role": "user", "content": "second"}])"));
  AnswerMemory empty;
  for (AnswerMemory* memory : {static_cast<AnswerMemory*>(nullptr), &empty}) {
    const EncodedPrompt prompt =
        encode_prompt(conversation, {}, tokenizer(), {.memory = memory, .marks = {0, 1, 3, 4, 77}});
    const auto text_before = [&](std::int64_t position) {
      return tokenizer().decode(std::span(prompt.tokens).first(static_cast<std::size_t>(position)));
    };
    const std::string bos = "<｜begin▁of▁sentence｜>";
    EXPECT_EQ(text_before(prompt.end_of_system_position), bos + "S one two");
    ASSERT_EQ(prompt.mark_positions.size(), 4u);
    EXPECT_EQ(text_before(prompt.mark_positions[0]), bos + "S one two");
    EXPECT_EQ(text_before(prompt.mark_positions[1]), bos + "S one two<｜User｜>first question");
    const std::string turn = bos +
                             "S one two<｜User｜>first question\n\nand more<｜Assistant｜>"
                             "</think>answer<｜end▁of▁sentence｜>";
    EXPECT_EQ(text_before(prompt.mark_positions[2]), turn);
    EXPECT_EQ(text_before(prompt.mark_positions[3]), turn + "<｜User｜>second");
    EXPECT_EQ(prompt.think_token_position, static_cast<std::int64_t>(prompt.tokens.size()) - 1);
  }
}

TEST(PromptEncoder, APrefixHasNoHeaderBehindIt) {
  Conversation conversation = conversation_from_json(Json::parse(R"([
      {"role": "user", "content": "q"},
      {"role": "assistant", "content": "", "reasoning_content": "so far", "prefix": true}])"));
  RenderOptions options;
  options.continues_reasoning = true;
  const EncodedPrompt prompt = encode_prompt(conversation, options, tokenizer());
  EXPECT_FALSE(prompt.think_token_position.has_value());
  EXPECT_EQ(prompt.end_of_system_position, 0);
  EXPECT_EQ(tokenizer().decode(prompt.tokens),
            "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>so far");
  options.continues_reasoning = false;
  EXPECT_EQ(render_text(conversation, options),
            "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>so far</think>");
}

TEST(PromptEncoder, ATaskKeepsTheThinkTagsPlace) {
  const Conversation conversation = conversation_from_json(
      Json::parse(R"([{"role": "user", "content": "q", "task": "action"}])"));
  const EncodedPrompt prompt = encode_prompt(conversation, {}, tokenizer());
  EXPECT_EQ(prompt.think_token_position, static_cast<std::int64_t>(prompt.tokens.size()) - 2);
}

}  // namespace
}  // namespace hadal::protocol
