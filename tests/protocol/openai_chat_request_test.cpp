// Chat completion requests: what becomes of them, and what is wrong with the others.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api_support.h"
#include "protocol/api_dispatch.h"

namespace hadal::protocol {
namespace {

using test::refusal;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

const std::string kHello = R"("messages": [{"role": "user", "content": "hi"}])";

// `members` beside a model and one user message.
std::string hello(const std::string& members) {
  return R"({"model": "m", )" + kHello + (members.empty() ? "" : ", " + members) + "}";
}

ApiRequest parse(const std::string& body, const ApiDefaults& defaults = {}) {
  return parse_chat_completions(parse_body(body), defaults);
}

std::string parse_refusal(const std::string& body, const ApiDefaults& defaults = {}) {
  return refusal([&] { (void)parse(body, defaults); });
}

std::string with_messages(const std::string& messages, const std::string& members = "") {
  return R"({"model": "m", "messages": )" + messages + (members.empty() ? "" : ", " + members) +
         "}";
}

// "ROLE CONTENT" with what else there is.
std::vector<std::string> outline(const ApiRequest& request) {
  std::vector<std::string> lines;
  for (const Message& message : request.conversation.messages) {
    std::string line = fmt::format("{} {}", to_string(message.role), message.content);
    if (!message.reasoning_content.empty()) line += " reasoning=" + message.reasoning_content;
    for (const ToolCall& call : message.tool_calls) {
      line += fmt::format(" call={}:{}:{}", call.id, call.name, call.arguments);
    }
    if (!message.tool_call_id.empty()) line += " answers=" + message.tool_call_id;
    if (!message.tools.empty()) line += fmt::format(" tools={}", message.tools.size());
    if (message.response_format) line += " format=" + message.response_format->dump();
    if (message.wo_eos) line += " open";
    lines.push_back(line);
  }
  return lines;
}

TEST(ChatRequest, SaysNothingMoreThanItMust) {
  const ApiRequest request = parse(hello(""));
  EXPECT_EQ(request.api, Api::chat_completions);
  EXPECT_EQ(request.model, "m");
  EXPECT_THAT(outline(request), ElementsAre("user hi"));
  EXPECT_EQ(request.thinking_mode, ThinkingMode::thinking);
  EXPECT_EQ(request.effort, ReasoningEffort::high);
  EXPECT_EQ(request.tool_policy.mode, ToolMode::none);
  EXPECT_EQ(request.format.kind, AnswerFormat::Kind::text);
  EXPECT_EQ(request.n, 1);
  EXPECT_FALSE(request.max_tokens || request.sampling.temperature || request.sampling.top_p ||
               request.sampling.seed || request.stream_id || request.thinking_budget);
  EXPECT_FALSE(request.stream || request.include_usage || request.logprobs || request.resumable ||
               request.continues_answer || request.ignore_eos);
  EXPECT_THAT(request.unknown_fields, ElementsAre());
}

TEST(ChatRequest, ReadsEveryField) {
  const ApiRequest request = parse(hello(R"(
      "max_tokens": 100, "max_completion_tokens": 90, "stream": true,
      "stream_options": {"include_usage": true, "include_obfuscation": false},
      "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "presence_penalty": -1,
      "frequency_penalty": 2, "repetition_penalty": 1.1, "logit_bias": {"5": -100, "7": 2.5},
      "seed": -1, "n": 16, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 20,
      "response_format": {"type": "json_schema", "json_schema": {"name": "answer",
          "description": "d", "schema": {"type": "object"}}},
      "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
      "parallel_tool_calls": false, "thinking": {"type": "enabled"}, "reasoning_effort": "max",
      "user_id": "u", "user": "v", "stream_id": "s", "resumable": true, "priority": -2,
      "ignore_eos": true, "min_tokens": 3, "thinking_budget": 50,
      "store": false, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"],
      "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "x", "audio": null,
      "what_is_this": 1)"));
  EXPECT_EQ(request.max_tokens, 90);
  EXPECT_TRUE(request.stream && request.include_usage);
  const SamplingOptions& sampling = request.sampling;
  EXPECT_EQ(sampling.temperature, 0.5);
  EXPECT_EQ(sampling.top_p, 0.9);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.05);
  EXPECT_EQ(sampling.presence_penalty, -1.0);
  EXPECT_EQ(sampling.frequency_penalty, 2.0);
  EXPECT_EQ(sampling.repetition_penalty, 1.1);
  EXPECT_THAT(sampling.logit_bias, ElementsAre(std::pair(5, -100.0), std::pair(7, 2.5)));
  EXPECT_EQ(sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(request.n, 16);
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 20);
  EXPECT_EQ(request.format.kind, AnswerFormat::Kind::json_schema);
  EXPECT_EQ(request.format.name, "answer");
  EXPECT_EQ(request.format.schema.dump(), R"({"type": "object"})");
  EXPECT_FALSE(request.format.strict);
  EXPECT_EQ(request.tools.size(), 1u);
  EXPECT_EQ(request.tool_policy.mode, ToolMode::required);
  EXPECT_FALSE(request.tool_policy.parallel);
  EXPECT_EQ(request.effort, ReasoningEffort::max);
  EXPECT_EQ(request.user_id, "u");
  EXPECT_EQ(request.stream_id, "s");
  EXPECT_TRUE(request.resumable && request.ignore_eos);
  EXPECT_EQ(request.priority, -2);
  EXPECT_EQ(request.min_tokens, 3);
  EXPECT_EQ(request.thinking_budget, 50);
  EXPECT_THAT(request.unknown_fields, ElementsAre("what_is_this"));
  EXPECT_THAT(outline(request),
              ElementsAre(R"(system  tools=1 format={"type": "object"})", "user hi"));
}

TEST(ChatRequest, SeedsAreAnyBits) {
  EXPECT_EQ(parse(hello(R"("seed": 18446744073709551615)")).sampling.seed, ~std::uint64_t{0});
  EXPECT_EQ(parse(hello(R"("seed": -9223372036854775808)")).sampling.seed, std::uint64_t{1} << 63);
  EXPECT_EQ(parse(hello(R"("seed": 0)")).sampling.seed, 0u);
  EXPECT_THAT(parse_refusal(hello(R"("seed": 18446744073709551616)")),
              HasSubstr("seed: found 18446744073709551616, wanted an integer of 64 bits"));
  EXPECT_THAT(parse_refusal(hello(R"("seed": -9223372036854775809)")), StartsWith("400 seed |"));
}

// Every field with a value of every type that it does not take.
TEST(ChatRequest, WrongTypesAreErrorsOfTheirField) {
  struct Value {
    const char* type;
    const char* text;
  };
  constexpr Value kValues[] = {{"string", "\"x\""}, {"integer", "1"}, {"real", "0.5"},
                               {"bool", "true"},    {"array", "[1]"}, {"object", "{\"x\": 1}"}};
  struct Field {
    const char* name;
    std::vector<std::string> takes;
  };
  const Field fields[] = {{"model", {"string"}},
                          {"messages", {}},
                          {"max_tokens", {"integer"}},
                          {"max_completion_tokens", {"integer"}},
                          {"stream", {"bool"}},
                          {"stream_options", {}},
                          {"temperature", {"integer", "real"}},
                          {"top_p", {"integer", "real"}},
                          {"top_k", {"integer"}},
                          {"min_p", {"integer", "real"}},
                          {"presence_penalty", {"integer", "real"}},
                          {"frequency_penalty", {"integer", "real"}},
                          {"repetition_penalty", {"integer", "real"}},
                          {"logit_bias", {}},
                          {"seed", {"integer"}},
                          {"n", {"integer"}},
                          {"stop", {"string"}},
                          {"logprobs", {"bool"}},
                          {"top_logprobs", {}},
                          {"response_format", {}},
                          {"tools", {}},
                          {"tool_choice", {}},
                          {"parallel_tool_calls", {"bool"}},
                          {"thinking", {}},
                          {"chat_template_kwargs", {"object"}},
                          {"reasoning_effort", {}},
                          {"user_id", {"string"}},
                          {"user", {"string"}},
                          {"stream_id", {"string"}},
                          {"resumable", {"bool"}},
                          {"priority", {"integer"}},
                          {"ignore_eos", {"bool"}},
                          {"min_tokens", {"integer"}},
                          {"thinking_budget", {"integer"}},
                          {"store", {"bool"}},
                          {"metadata", {"object"}},
                          {"service_tier", {"string"}},
                          {"safety_identifier", {"string"}},
                          {"prompt_cache_key", {"string"}},
                          {"prompt_cache_retention", {"string"}},
                          {"verbosity", {"string"}},
                          {"modalities", {}},
                          {"audio", {}},
                          {"functions", {}},
                          {"function_call", {}},
                          {"web_search_options", {}}};
  for (const Field& field : fields) {
    for (const Value& value : kValues) {
      // A repeated member replaces the one before.
      const std::string body = hello(fmt::format(R"("{}": {})", field.name, value.text));
      const std::string found = parse_refusal(body);
      const bool takes = std::ranges::find(field.takes, value.type) != field.takes.end();
      if (takes) {
        EXPECT_EQ(found, "accepted") << body;
      } else {
        EXPECT_THAT(found, StartsWith(fmt::format("400 {}", field.name))) << body;
      }
    }
    const std::string null = hello(fmt::format(R"("{}": null)", field.name));
    const bool required =
        field.name == std::string("model") || field.name == std::string("messages");
    EXPECT_EQ(parse_refusal(null),
              required ? fmt::format("400 {0} | {0}: is missing", field.name) : "accepted");
  }
}

TEST(ChatRequest, RangesAreErrorsOfTheirField) {
  struct Case {
    const char* members;
    const char* refusal;
  };
  for (const Case& c : std::initializer_list<Case>{
           {R"("max_tokens": 0)",
            "max_tokens | max_tokens: found 0, wanted an integer from 1 to "
            "393216"},
           {R"("max_tokens": 9999999)",
            "max_tokens | max_tokens: found 9999999, wanted an integer from 1 to 393216"},
           {R"("temperature": 2.1)",
            "temperature | temperature: found 2.1, wanted a number from 0 "
            "to 2"},
           {R"("temperature": -0.1)", "temperature |"},
           {R"("top_p": 0)", "top_p | top_p: found 0, wanted a number above 0 and up to 1"},
           {R"("top_p": 1.01)", "top_p |"},
           {R"("top_k": -2)", "top_k |"},
           {R"("min_p": 1.5)", "min_p |"},
           {R"("presence_penalty": 2.5)", "presence_penalty |"},
           {R"("frequency_penalty": -2.5)", "frequency_penalty |"},
           {R"("repetition_penalty": 0)",
            "repetition_penalty | repetition_penalty: found 0, wanted "
            "a number above 0"},
           {R"("logit_bias": {"5": 101})", "logit_bias.5 |"},
           {R"("logit_bias": {"x": 1})", "logit_bias | logit_bias: found \"x\", wanted token ids"},
           {R"("logit_bias": {"-1": 1})", "logit_bias |"},
           {R"("logit_bias": {"": 1})", "logit_bias |"},
           {R"("logit_bias": {"5 ": 1})", "logit_bias |"},
           {R"("logit_bias": {"99999999999": 1})", "logit_bias |"},
           {R"("n": 0)", "n | n: found 0, wanted an integer from 1 to 16"},
           {R"("n": 17)", "n |"},
           {R"("stop": "")", "stop | stop: has 0 bytes, wanted 1 to 256"},
           {R"("stop": ["a", ""])", "stop[1] |"},
           {R"("stop": ["a", 1])", "stop[1] | stop[1]: found 1, wanted a string"},
           {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs |"},
           {R"("logprobs": false, "top_logprobs": 1)",
            "top_logprobs | top_logprobs: is only allowed"},
           {R"("stream_options": {"include_usage": true})",
            "stream_options | stream_options: is only allowed together with \"stream\": true"},
           {R"("stream": true, "stream_options": {"include_usage": 1})",
            "stream_options.include_usage |"},
           {R"("response_format": {})", "response_format.type | response_format.type: is missing"},
           {R"("response_format": {"type": "xml"})",
            "response_format.type | response_format.type: found \"xml\", wanted one of text, "
            "json_object, json_schema"},
           {R"("response_format": {"type": "json_schema"})", "response_format.json_schema |"},
           {R"("response_format": {"type": "json_schema", "json_schema": {"schema": {}}})",
            "response_format.json_schema.name |"},
           {R"("response_format": {"type": "json_schema", "json_schema": {"name": "n"}})",
            "response_format.json_schema.schema |"},
           {R"("response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict":
               true, "schema": {"type": "object", "properties": {"a": {"type": "string", "pattern":
               "x"}}}}})",
            "response_format.json_schema.schema.additionalProperties |"},
           {R"("thinking": {"type": "maybe"})", "thinking.type | thinking.type: found \"maybe\""},
           {R"("thinking": {})", "thinking.type |"},
           {R"("reasoning_effort": "medium-rare")",
            "reasoning_effort | reasoning_effort: unknown reasoning effort 'medium-rare'"},
           {R"("reasoning_effort": "")", "reasoning_effort |"},
           {R"("chat_template_kwargs": {"thinking": 1})", "chat_template_kwargs.thinking |"},
           {R"("stream_id": "")", "stream_id |"},
           {R"("priority": 3000000000)", "priority |"},
           {R"("min_tokens": 5, "max_tokens": 4)",
            "min_tokens | min_tokens: found 5, which is more"},
           {R"("thinking_budget": -1)", "thinking_budget |"},
           {R"("modalities": ["text", "audio"])", "modalities |"},
           {R"("model": "")", "model | model: is empty"}}) {
    EXPECT_THAT(parse_refusal(hello(c.members)), StartsWith(std::string("400 ") + c.refusal))
        << c.members;
  }
  const auto text = [](const char* name, std::size_t n) {
    return hello(fmt::format(R"("{}": "{}")", name, std::string(n, 'x')));
  };
  EXPECT_EQ(parse_refusal(text("stop", 256)), "accepted");
  EXPECT_THAT(parse_refusal(text("stop", 257)), StartsWith("400 stop |"));
  EXPECT_EQ(parse_refusal(text("user_id", 512)), "accepted");
  EXPECT_THAT(parse_refusal(text("user_id", 513)), StartsWith("400 user_id |"));
  EXPECT_EQ(parse_refusal(text("stream_id", 128)), "accepted");
  EXPECT_THAT(parse_refusal(text("stream_id", 129)), StartsWith("400 stream_id |"));
  std::string stops = "[\"s\"";
  for (int i = 0; i < 16; ++i) stops += ",\"s\"";
  EXPECT_THAT(parse_refusal(hello("\"stop\": " + stops + "]")),
              HasSubstr("stop: has 17 strings, at most 16 are allowed"));
  std::string biases = "{\"0\": 1";
  for (int i = 1; i <= 1024; ++i) biases += fmt::format(",\"{}\": 1", i);
  EXPECT_THAT(parse_refusal(hello("\"logit_bias\": " + biases + "}")),
              HasSubstr("has 1025 entries, at most 1024 are allowed"));
  EXPECT_THAT(parse_refusal("[]"), StartsWith("400 - | the request body: found an array"));
  EXPECT_THAT(parse_refusal("{\"model\": \"m\"}"),
              StartsWith("400 messages | messages: is missing"));
}

TEST(ChatRequest, LastOfRepeatedMembersCounts) {
  EXPECT_EQ(parse(hello(R"("n": 2, "n": 3)")).n, 3);
}

TEST(ChatRequest, ThinkingHasManySwitches) {
  struct Case {
    const char* members;
    ThinkingMode mode;
    ReasoningEffort effort;
  };
  using enum ThinkingMode;
  using enum ReasoningEffort;
  for (const Case& c : std::initializer_list<Case>{
           {R"("n": 1)", thinking, high},
           {R"("thinking": {"type": "enabled"})", thinking, high},
           {R"("thinking": {"type": "disabled"})", chat, none},
           {R"("thinking": {"type": "disabled"}, "reasoning_effort": "max")", chat, none},
           {R"("reasoning_effort": "none")", chat, none},
           {R"("reasoning_effort": "none", "thinking": {"type": "enabled"})", chat, none},
           {R"("reasoning_effort": "xhigh")", thinking, max},
           {R"("chat_template_kwargs": {"thinking": false})", chat, none},
           {R"("chat_template_kwargs": {"enable_thinking": false})", chat, none},
           {R"("chat_template_kwargs": {"thinking": true, "reasoning_effort": "max"})", thinking,
            max},
           {R"("chat_template_kwargs": {"thinking": true}, "thinking": {"type": "disabled"})", chat,
            none}}) {
    const ApiRequest request = parse(hello(c.members));
    EXPECT_EQ(request.thinking_mode, c.mode) << c.members;
    EXPECT_EQ(request.effort, c.effort) << c.members;
  }
  ApiDefaults alias;  // as deepseek-chat
  alias.thinking_mode = chat;
  EXPECT_EQ(parse(hello(""), alias).thinking_mode, chat);
  EXPECT_EQ(parse(hello(R"("thinking": {"type": "enabled"})"), alias).effort, high);
  EXPECT_EQ(parse(hello(R"("reasoning_effort": "max")"), alias).effort, max);
  ApiDefaults newer;
  newer.profile = ChatProfile::v4_0731;
  EXPECT_EQ(parse(hello(R"("reasoning_effort": "minimal")"), newer).effort, low);
  EXPECT_EQ(parse(hello(R"("chat_template_kwargs": {"x": 1})")).unknown_fields.at(0),
            "chat_template_kwargs.x");
}

TEST(ChatRequest, MessagesBecomeAConversation) {
  const ApiRequest request = parse(with_messages(R"([
      {"role": "system", "content": "S"},
      {"role": "developer", "content": [{"type": "text", "text": "D"}]},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
       "name": "bob"},
      {"role": "assistant", "content": null, "reasoning_content": "r", "refusal": null,
       "tool_calls": [{"id": "c1", "type": "function", "index": 0,
          "function": {"name": "f", "arguments": "{\"x\":1}"}},
         {"id": "c2", "function": {"name": "g", "arguments": {"y": [1,2]}}},
         {"id": "c3", "function": {"name": "h"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "R1"},
      {"role": "tool", "tool_call_id": "c2", "content": [{"type": "image_url"},
         {"type": "text", "text": "t"}]},
      {"role": "tool", "tool_call_id": "c3", "content": null},
      {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning": "q",
       "extra": 1, "tool_calls": null},
      {"role": "system", "content": "later"},
      {"role": "developer", "content": "too"},
      {"role": "user"}])"));
  EXPECT_THAT(
      outline(request),
      ElementsAre("system S\n\nD", "user a\n\nb",
                  R"(assistant  reasoning=r call=c1:f:{"x":1} call=c2:g:{"y": [1, 2]} call=c3:h:)",
                  "tool R1 answers=c1", "tool [Unsupported image_url]\n\nt answers=c2",
                  "tool  answers=c3", "assistant no reasoning=q", "user later", "user too",
                  "user "));
  EXPECT_THAT(request.unknown_fields, ElementsAre("messages[].extra"));
}

TEST(ChatRequest, RefusesMessagesByTheirPath) {
  struct Case {
    const char* messages;
    const char* refusal;
  };
  constexpr const char* kUser = R"({"role": "user", "content": "u"})";
  const std::string call =
      R"({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]})";
  const std::string result = R"({"role": "tool", "tool_call_id": "c", "content": "r"})";
  const auto list = [](std::initializer_list<std::string> messages) {
    return fmt::format("[{}]", fmt::join(messages, ", "));
  };
  EXPECT_EQ(parse_refusal(with_messages(list({kUser, call, result}))), "accepted");
  for (
      const auto& [messages, wanted] : std::vector<std::pair<std::string, std::string>>{
          {"[]", "messages | messages: there must be at least one message"},
          {"[3]", "messages[0] | messages[0]: found 3, wanted an object"},
          {"[{}]", "messages[0].role | messages[0].role: is missing"},
          {R"([{"role": "function"}])",
           "messages[0].role | messages[0].role: found \"function\", wanted one of system, "},
          {R"([{"role": 1}])", "messages[0].role |"},
          {R"([{"role": "user", "content": 1}])",
           "messages[0].content | messages[0].content: found 1, wanted a string or an array of "
           "parts"},
          {R"([{"role": "user", "content": [1]}])", "messages[0].content[0] |"},
          {R"([{"role": "user", "content": [{"text": "x"}]}])", "messages[0].content[0].type |"},
          {R"([{"role": "user", "content": [{"type": "text"}]}])",
           "messages[0].content[0].text | messages[0].content[0].text: is missing"},
          {R"([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])",
           "messages[0].content[0].type | messages[0].content[0].type: unsupported content type "
           "\"image_url\"; only text can be read here"},
          {R"([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}])",
           "messages[0].content[0].type |"},
          {R"([{"role": "user", "prefix": true}])", "messages[0].prefix |"},
          {R"([{"role": "user", "task": "query"}])",
           "messages[0].task | messages[0].task: tasks are switched off"},
          {R"([{"role": "user", "task": "dance"}])", "messages[0].task |"},
          {list({kUser, R"({"role": "assistant", "reasoning_content": 1})"}),
           "messages[1].reasoning_content |"},
          {list({kUser, R"({"role": "assistant", "function_call": {"name": "f"}})"}),
           "messages[1].function_call |"},
          {list({kUser, R"({"role": "assistant", "tool_calls": {}})"}),
           "messages[1].tool_calls | messages[1].tool_calls: found an object, wanted an array"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]})"}),
           "messages[1].tool_calls[0].id | messages[1].tool_calls[0].id: is missing"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"id": "c"}]})"}),
           "messages[1].tool_calls[0].function |"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]})"}),
           "messages[1].tool_calls[0].function.name |"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]})"}),
           "messages[1].tool_calls[0].type |"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"id": "c", "function":
               {"name": "f", "arguments": 5}}]})"}),
           "messages[1].tool_calls[0].function.arguments |"},
          {list({kUser, R"({"role": "assistant", "tool_calls": [{"id": "c", "function":
               {"name": "f", "arguments": "[1]"}}]})",
                 result}),
           "messages[1] | messages[1]: the arguments of tool call 'c' are a JSON array"},
          {list({kUser, R"({"role": "tool", "content": "r"})"}), "messages[1].tool_call_id |"},
          {list({kUser, result}),
           "messages[1] | messages[1]: Messages with role 'tool' must be a response to a preceding "
           "message with 'tool_calls'"},
          {list({kUser, call, kUser}), "messages[1] | messages[1]: no tool message answers"},
          {list({kUser, call}), "messages[1] | messages[1]: no tool message answers"},
          {list({kUser, call, result, result}), "messages[3] | messages[3]: Messages with role"},
          {list({kUser, R"({"role": "latest_reminder", "content": "x"})"}),
           "messages[1] | messages[1]: a latest_reminder may not follow a user message"},
          {R"([{"role": "system", "content": "x"}])", "messages | messages: only system text"},
          {list({kUser, R"({"role": "assistant", "content": "x"})"}),
           "messages[1] | messages[1]: the last message must be a user or tool message, or an "
           "assistant message with \"prefix\": true"},
          {list({kUser, R"({"role": "assistant", "content": "x", "prefix": true})", kUser}),
           "messages[1] | messages[1]: a prefix to be continued must be the last message"},
          {R"([{"role": "assistant", "content": "x", "prefix": true}])",
           "messages[0] | messages[0]: a prefix must follow a user or tool message"}}) {
    EXPECT_THAT(parse_refusal(with_messages(messages)), StartsWith("400 " + wanted)) << messages;
  }
}

TEST(ChatRequest, PathsAreThoseOfTheClient) {
  // Joined system messages and an attached head do not shift them.
  EXPECT_THAT(parse_refusal(with_messages(R"([{"role": "system", "content": "a"},
      {"role": "system", "content": "b"}, {"role": "user", "content": "c"},
      {"role": "tool", "tool_call_id": "x", "content": "d"}])",
                                          R"("tools": [{"function": {"name": "f"}}])")),
              StartsWith("400 messages[3] |"));
}

TEST(ChatRequest, LaterSystemMessagesCanBeRefused) {
  ApiDefaults defaults;
  defaults.mid_system_as_user = false;
  const auto body = [](const char* role) {
    return with_messages(fmt::format(R"([{{"role": "system", "content": "a"}},
        {{"role": "user", "content": "b"}}, {{"role": "{}", "content": "c"}}])",
                                     role));
  };
  EXPECT_THAT(parse_refusal(body("system"), defaults),
              StartsWith("400 messages[2].role | messages[2].role: this model reads system"));
  EXPECT_THAT(outline(parse(body("developer"), defaults)),
              ElementsAre("system a", "user b", "user c"));
}

TEST(ChatRequest, ToolsAndFormatStandAtTheHead) {
  const std::string tools = R"("tools": [{"type": "function", "function": {"name": "f"}}])";
  const std::string format =
      R"("response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema":
         {"type": "object"}}})";
  EXPECT_THAT(outline(parse(hello(tools))), ElementsAre("system  tools=1", "user hi"));
  EXPECT_THAT(outline(parse(with_messages(R"([{"role": "system", "content": "S"},
      {"role": "user", "content": "u"}])",
                                          tools + ", " + format))),
              ElementsAre(R"(system S tools=1 format={"type": "object"})", "user u"));
  EXPECT_THAT(outline(parse(hello(format))),
              ElementsAre(R"(system  format={"type": "object"})", "user hi"));
  const ApiRequest none = parse(hello(tools + R"(, "tool_choice": "none")"));
  EXPECT_THAT(outline(none), ElementsAre("user hi"));
  EXPECT_TRUE(none.tools.empty());
  EXPECT_EQ(none.tool_policy.mode, ToolMode::none);
  ApiDefaults hidden;
  hidden.response_format_in_prompt = false;
  const ApiRequest unseen = parse(hello(format), hidden);
  EXPECT_THAT(outline(unseen), ElementsAre("user hi"));
  EXPECT_EQ(unseen.format.kind, AnswerFormat::Kind::json_schema);
  EXPECT_THAT(outline(parse(hello(R"("response_format": {"type": "json_object"})"))),
              ElementsAre("user hi"));
}

TEST(ChatRequest, PrefixesAreContinued) {
  struct Case {
    const char* message;
    const char* members;
    bool in_reasoning;
  };
  for (const Case& c : std::initializer_list<Case>{
           {R"("content": "x")", R"("n": 1)", false},
           {R"("content": "x", "reasoning_content": "r")", R"("n": 1)", false},
           {R"("reasoning_content": "r")", R"("n": 1)", true},
           {R"("content": "")", R"("n": 1)", true},
           {R"("content": "")", R"("thinking": {"type": "disabled"})", false},
           {R"("content": "x")", R"("reasoning_effort": "none")", false}}) {
    const ApiRequest request = parse(
        with_messages(fmt::format(R"([{{"role": "user", "content": "u"}}, {{"role": "assistant", {},
                         "prefix": true}}])",
                                  c.message),
                      c.members));
    EXPECT_TRUE(request.continues_answer);
    EXPECT_EQ(request.continues_reasoning, c.in_reasoning) << c.message << c.members;
    EXPECT_TRUE(request.conversation.messages.back().wo_eos);
  }
  EXPECT_FALSE(parse(hello("")).continues_answer);
}

TEST(ChatRequest, TasksCanBeSwitchedOn) {
  ApiDefaults defaults;
  defaults.enable_tasks = true;
  const ApiRequest query =
      parse(with_messages(R"([{"role": "user", "content": "u", "task": "query"}])"), defaults);
  EXPECT_EQ(query.conversation.messages.at(0).task, Task::query);
  const ApiRequest title = parse(with_messages(R"([{"role": "user", "content": "u"},
      {"role": "assistant", "content": "a", "task": "title"}])"),
                                 defaults);
  EXPECT_EQ(title.conversation.messages.at(1).task, Task::title);
}

TEST(ChatRequest, StrictReasoningIsDeepSeeks) {
  ApiDefaults strict;
  strict.strict_reasoning = true;
  const auto history = [](const char* reasoning) {
    return with_messages(fmt::format(R"([{{"role": "user", "content": "u"}}, {{"role": "assistant",
        "reasoning_content": {}, "tool_calls": [{{"id": "c", "function": {{"name": "f"}}}}]}},
        {{"role": "tool", "tool_call_id": "c", "content": "r"}}])",
                                     reasoning));
  };
  EXPECT_EQ(
      parse_refusal(history("null"), strict),
      "400 - invalid_request_error | The reasoning_content in the thinking mode must be passed "
      "back to the API.");
  EXPECT_EQ(parse_refusal(history("\"r\""), strict), "accepted");
  EXPECT_EQ(parse_refusal(history("null")), "accepted");
}

TEST(ChatRequest, DeepSchemasAndLongHistoriesAreFine) {
  std::string schema = R"({"type": "string"})";
  for (int i = 0; i < 50; ++i) schema = R"({"type": "array", "items": )" + schema + "}";
  EXPECT_EQ(
      parse_refusal(hello(R"("tools": [{"function": {"name": "f", "strict": true,
      "parameters": {"type": "object", "properties": {"p": )" +
                          schema + R"(}, "required": ["p"], "additionalProperties": false}}}])")),
      "accepted");
  std::string messages = "[";
  for (int i = 0; i < 2000; ++i) messages += R"({"role": "user", "content": "u"},)";
  messages += R"({"role": "user", "content": "u"}])";
  EXPECT_EQ(parse(with_messages(messages)).conversation.messages.size(), 2001u);
}

}  // namespace
}  // namespace hadal::protocol
