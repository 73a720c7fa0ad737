#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "protocol/anthropic_messages.h"
#include "protocol/chat_template.h"

namespace hadal::protocol {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ApiRequest parse(const std::string& members, ApiDefaults defaults = {}) {
  return parse_request(
      Api::messages, Json::parse(R"({"model": "m", "max_tokens": 10, )" + members + "}"), defaults);
}
ApiRequest parse_content(const std::string& messages) {
  return parse(R"("messages": )" + messages);
}

std::string prompt_of(const ApiRequest& request) {
  RenderOptions options;
  options.thinking_mode = request.thinking_mode;
  return render_text(request.conversation, options);
}

const std::string kHi = R"("messages": [{"role": "user", "content": "hi"}])";

TEST(AnthropicRequest, Minimal) {
  const ApiRequest request = parse(kHi);
  EXPECT_EQ(request.api, Api::messages);
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.max_tokens, 10);
  EXPECT_EQ(request.n, 1);
  EXPECT_FALSE(request.stream);
  EXPECT_EQ(request.tool_policy.mode, ToolMode::none);
  EXPECT_THAT(request.unknown_fields, IsEmpty());
  EXPECT_EQ(prompt_of(request), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>");
}

TEST(AnthropicRequest, EveryField) {
  const ApiRequest request = parse(kHi + R"(, "system": "S", "stream": true, "temperature": 0.5,
      "top_p": 0.9, "top_k": 40, "stop_sequences": ["a", "b"], "metadata": {"user_id": "u"},
      "service_tier": "auto", "thinking": {"type": "enabled", "budget_tokens": 2048},
      "output_config": {"effort": "max"}, "anthropic_beta": ["x"], "what_is_this": 1)");
  EXPECT_TRUE(request.stream);
  EXPECT_EQ(request.sampling.temperature, 0.5);
  EXPECT_EQ(request.sampling.top_p, 0.9);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_EQ(request.user_id, "u");
  EXPECT_EQ(request.thinking_mode, ThinkingMode::thinking);
  EXPECT_EQ(request.effort, ReasoningEffort::max);
  EXPECT_THAT(request.unknown_fields, ElementsAre("what_is_this"));
}

TEST(AnthropicRequest, Thinking) {
  struct Case {
    const char* members;
    ThinkingMode mode;
    ReasoningEffort effort;
  };
  const Case cases[] = {
      {R"("thinking": {"type": "disabled"})", ThinkingMode::chat, ReasoningEffort::none},
      {R"("thinking": {"type": "adaptive"})", ThinkingMode::thinking, ReasoningEffort::high},
      {R"("thinking": {"type": "disabled"}, "output_config": {"effort": "max"})",
       ThinkingMode::chat, ReasoningEffort::none},
      {R"("output_config": {"effort": "xhigh"})", ThinkingMode::thinking, ReasoningEffort::max},
      {R"("output_config": {"effort": "none"})", ThinkingMode::chat, ReasoningEffort::none}};
  for (const Case& c : cases) {
    const ApiRequest request = parse(kHi + ", " + c.members);
    EXPECT_EQ(request.thinking_mode, c.mode) << c.members;
    EXPECT_EQ(request.effort, c.effort) << c.members;
  }
  ApiDefaults chat;
  chat.thinking_mode = ThinkingMode::chat;
  EXPECT_EQ(parse(kHi + R"(, "output_config": {"effort": "max"})", chat).thinking_mode,
            ThinkingMode::chat);
}

TEST(AnthropicRequest, SystemBlocks) {
  const ApiRequest request = parse(kHi + R"(, "system": [
      {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"},
      {"type": "text", "text": "You help.\nX-Anthropic-Billing-Header: again\nAlways."},
      {"type": "text", "text": "More.", "cache_control": {"type": "ephemeral"}}])");
  EXPECT_EQ(request.conversation.messages[0].content, "You help.\nAlways.\n\nMore.");
  EXPECT_THAT(request.cache_marks, ElementsAre(0));
}

TEST(AnthropicRequest, BillingLines) {
  EXPECT_EQ(without_billing_lines(""), "");
  EXPECT_EQ(without_billing_lines("x-anthropic-billing-header: a"), "");
  EXPECT_EQ(without_billing_lines("a\nx-anthropic-billing-header: b"), "a\n");
  EXPECT_EQ(without_billing_lines("x-anthropic-billing-header: a\n\nb\n"), "\nb\n");
  EXPECT_EQ(without_billing_lines(" x-anthropic-billing-header: quoted"),
            " x-anthropic-billing-header: quoted");
}

TEST(AnthropicRequest, ToolRounds) {
  const ApiRequest request = parse(R"("messages": [
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "answer_123"},
        {"type": "redacted_thinking", "data": "zzz"},
        {"type": "text", "text": "Look:"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"z": [1, 2.50], "a": "é"}},
        {"type": "tool_use", "id": "t2", "name": "ping", "input": {}}]},
      {"role": "user", "content": [
        {"type": "text", "text": "here"},
        {"type": "tool_result", "tool_use_id": "t2", "content": "pong", "is_error": false},
        {"type": "tool_result", "tool_use_id": "t1", "content": [
          {"type": "text", "text": "one"}, {"type": "image", "source": {}},
          {"type": "text", "text": "two"}]}]}],
    "tools": [{"name": "f", "description": "does f", "input_schema": {"type": "object"}},
              {"type": "custom", "input_schema": {"type": "object"}, "name": "ping"}])");
  const auto& messages = request.conversation.messages;
  ASSERT_EQ(messages.size(), 7u);  // system for the tools, two texts, answer, two results, text
  EXPECT_EQ(messages[3].reasoning_content, "hm");
  EXPECT_EQ(messages[3].answer_pointer, "answer_123");
  EXPECT_EQ(messages[3].content, "Look:");
  ASSERT_EQ(messages[3].tool_calls.size(), 2u);
  EXPECT_EQ(messages[3].tool_calls[0].arguments, R"({"z": [1, 2.5], "a": "é"})");
  ASSERT_EQ(messages[0].tools.size(), 2u);
  EXPECT_EQ(messages[0].tools[0].dump(),
            R"({"name": "f", "description": "does f", "parameters": {"type": "object"}})");
  EXPECT_EQ(messages[0].tools[1].dump(), R"({"name": "ping", "parameters": {"type": "object"}})");
  EXPECT_EQ(request.tool_policy.mode, ToolMode::automatic);
  const std::string prompt = prompt_of(request);
  EXPECT_THAT(prompt,
              HasSubstr("<｜User｜>a\n\nb<｜Assistant｜><think>hm</think>Look:\n\n<｜DSML｜"));
  // Results in the order of their calls, before what the user said with them.
  EXPECT_THAT(prompt, HasSubstr("<｜User｜><tool_result>one\n\n[Unsupported "
                                "image]\n\ntwo</tool_result>\n\n<tool_result>pong</tool_result>"
                                "\n\nhere<｜Assistant｜><think>"));
}

TEST(AnthropicRequest, ToolChoice) {
  const std::string tools = R"(, "tools": [{"name": "f", "input_schema": {}},
                                           {"name": "g", "input_schema": {}}])";
  const auto policy = [&](const std::string& choice) {
    return parse(kHi + tools + R"(, "tool_choice": )" + choice).tool_policy;
  };
  EXPECT_EQ(policy(R"({"type": "auto"})").mode, ToolMode::automatic);
  EXPECT_TRUE(policy(R"({"type": "auto"})").parallel);
  EXPECT_EQ(policy(R"({"type": "any", "disable_parallel_tool_use": true})").mode,
            ToolMode::required);
  EXPECT_FALSE(policy(R"({"type": "any", "disable_parallel_tool_use": true})").parallel);
  EXPECT_THAT(policy(R"({"type": "tool", "name": "g"})").allowed, ElementsAre("g"));
  EXPECT_EQ(policy(R"({"type": "tool", "name": "g"})").mode, ToolMode::required);
  // The model does not see tools that it must not call.
  const ApiRequest none = parse(kHi + tools + R"(, "tool_choice": {"type": "none"})");
  EXPECT_EQ(none.tool_policy.mode, ToolMode::none);
  EXPECT_EQ(prompt_of(none), prompt_of(parse(kHi)));
}

TEST(AnthropicRequest, CacheMarks) {
  const std::string mark = R"("cache_control": {"type": "ephemeral"})";
  // On tools: behind the message that shows them, also where that is made up for them.
  EXPECT_THAT(
      parse(kHi + R"(, "tools": [{"name": "f", "input_schema": {}, )" + mark + "}]").cache_marks,
      ElementsAre(0));
  const std::string messages = R"("messages": [
      {"role": "user", "content": [{"type": "text", "text": "a", )" +
                               mark + R"(}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": [{"type": "text", "text": "c", )" +
                               mark + R"(}]},
      {"role": "user", "content": [{"type": "text", "text": "d", )" +
                               mark + "}]}]";
  EXPECT_THAT(parse(messages).cache_marks, ElementsAre(0, 2, 3));
  EXPECT_THAT(parse(messages + R"(, "system": "S")").cache_marks, ElementsAre(1, 3, 4));
  EXPECT_THAT(parse(messages + R"(, "tools": [{"name": "f", "input_schema": {}}])").cache_marks,
              ElementsAre(1, 3, 4));
  EXPECT_THAT(parse(kHi + ", " + mark).cache_marks, ElementsAre(0));
}

TEST(AnthropicRequest, Prefill) {
  const ApiRequest request = parse_content(R"([{"role": "user", "content": "q"},
      {"role": "assistant", "content": "The answer is"}])");
  EXPECT_TRUE(request.continues_answer);
  EXPECT_FALSE(request.continues_reasoning);
  EXPECT_EQ(prompt_of(request),
            "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think></think>The answer is");
  const ApiRequest empty = parse_content(R"([{"role": "user", "content": "q"},
      {"role": "assistant", "content": ""}])");
  EXPECT_FALSE(empty.continues_answer);
  EXPECT_EQ(prompt_of(empty), "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜><think>");
}

TEST(AnthropicRequest, NeighboursAreOneTurn) {
  const ApiRequest request = parse_content(R"([{"role": "user", "content": "q"},
      {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"},
      {"role": "user", "content": "r"}, {"role": "user", "content": "s"}])");
  EXPECT_EQ(prompt_of(request),
            "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜></think>a\n\nb<｜end▁of▁sentence｜>"
            "<｜User｜>r\n\ns<｜Assistant｜><think>");
}

TEST(AnthropicRequest, AnswerFormat) {
  const ApiRequest request = parse(kHi + R"(, "output_config": {"format": {"type": "json_schema",
      "schema": {"type": "object"}}})");
  EXPECT_EQ(request.format.kind, AnswerFormat::Kind::json_schema);
  EXPECT_EQ(request.format.schema.dump(), R"({"type": "object"})");
  EXPECT_THAT(prompt_of(request), HasSubstr("## Response Format:"));
}

TEST(AnthropicRequest, CountTokens) {
  const Json body =
      Json::parse(R"({"model": "m", "messages": [{"role": "user", "content": "q"}]})");
  EXPECT_THROW(static_cast<void>(parse_request(Api::messages, body, {})), ApiException);
  EXPECT_EQ(parse_count_tokens(body, {}).conversation.messages.size(), 1u);
  EXPECT_EQ(count_tokens_body(12), R"({"input_tokens":12})");
}

TEST(AnthropicRequest, Refuses) {
  struct Case {
    const char* members;
    const char* param;
    const char* message;
  };
  const Case cases[] = {
      {R"("messages": [])", "messages", "at least one"},
      {R"("messages": 5)", "messages", "an array"},
      {R"("messages": [{"role": "tool", "content": "x"}])", "messages[0].role", "one of user"},
      {R"("messages": [{"role": "user"}])", "messages[0].content", "is missing"},
      {R"("messages": [{"role": "user", "content": 5}])", "messages[0].content", "array"},
      {R"("messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}])",
       "messages[0].content[0].type", "image"},
      {R"("messages": [{"role": "user", "content": [{"type": "text"}]}])",
       "messages[0].content[0].text", "is missing"},
      {R"("messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}])",
       "messages[0].content[0]", "tool_calls"},
      {R"("messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [
          {"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
          {"role": "user", "content": "no result"}])",
       "messages[1]", "'t'"},
      {R"("messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [
          {"type": "tool_use", "id": "t", "name": "f", "input": "{}"}]}])",
       "messages[1].content[0].input", "an object"},
      {R"("messages": [{"role": "user", "content": "q"}], "system": 3)", "system", "array"},
      {R"("messages": [{"role": "user", "content": "q"}], "system": [{"type": "image"}])",
       "system[0].type", "image"},
      {R"("messages": [{"role": "user", "content": "q"}], "max_tokens": 0)", "max_tokens", "0"},
      {R"("messages": [{"role": "user", "content": "q"}], "temperature": 3)", "temperature", "3"},
      {R"("messages": [{"role": "user", "content": "q"}], "stop_sequences": [""])",
       "stop_sequences[0]", "0 bytes"},
      {R"("messages": [{"role": "user", "content": "q"}], "thinking": {"type": "maybe"})",
       "thinking.type", "adaptive"},
      {R"("messages": [{"role": "user", "content": "q"}], "output_config": {"effort": "wild"})",
       "output_config.effort", "wild"},
      {R"("messages": [{"role": "user", "content": "q"}], "tool_choice": {"type": "any"})",
       "tool_choice", "no tools"},
      {R"("messages": [{"role": "user", "content": "q"}],
          "tools": [{"type": "web_search_20250305", "name": "web_search"}])",
       "tools[0].type", "not offered"},
      {R"("messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}])",
       "tools[0].input_schema", "is missing"},
      {R"("messages": [{"role": "user", "content": "q"}],
          "tools": [{"name": "f g", "input_schema": {}}])",
       "tools[0].name", "letters"},
      {R"("messages": [{"role": "user", "content": "q"}],
          "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"})",
       "tool_choice", "'g'"},
      {R"("messages": [{"role": "user", "content": "q"}], "mcp_servers": [{"type": "url"}])",
       "mcp_servers", "no tools"},
      {R"("messages": [{"role": "assistant", "content": "q"}])", "messages[0]", "prefix"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.members);
    try {
      static_cast<void>(parse(c.members));
      ADD_FAILURE() << "was taken";
    } catch (const ApiException& e) {
      EXPECT_EQ(e.error.status, 400);
      EXPECT_EQ(e.error.type, "invalid_request_error");
      EXPECT_EQ(e.error.param.value_or("none"), c.param);
      EXPECT_THAT(e.error.message, HasSubstr(c.message));
    }
  }
}

}  // namespace
}  // namespace hadal::protocol
