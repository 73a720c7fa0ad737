#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "protocol/api.h"
#include "protocol/chat_template.h"
#include "protocol/responses_input.h"
#include "protocol/responses_tools.h"

namespace hadal::protocol {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ApiRequest parse(const std::string& members) {
  return parse_request(Api::responses, Json::parse(R"({"model": "m", )" + members + "}"), {});
}

std::string prompt_of(const ApiRequest& request) {
  RenderOptions options;
  options.thinking_mode = request.thinking_mode;
  return render_text(request.conversation, options);
}

TEST(ResponsesRequest, Minimal) {
  const ApiRequest request = parse(R"("input": "hi")");
  EXPECT_EQ(request.api, Api::responses);
  EXPECT_TRUE(request.store);
  EXPECT_FALSE(request.background);
  EXPECT_FALSE(request.previous_response_id.has_value());
  EXPECT_FALSE(request.max_tokens.has_value());
  EXPECT_EQ(request.thinking_mode, ThinkingMode::thinking);
  EXPECT_THAT(request.unknown_fields, IsEmpty());
  EXPECT_EQ(prompt_of(request), "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>");
}

TEST(ResponsesRequest, EveryField) {
  const ApiRequest request = parse(R"("input": "hi", "instructions": "Be kind.",
      "max_output_tokens": 50, "temperature": 0.5, "top_p": 0.9, "stream": true, "store": false,
      "reasoning": {"effort": "xhigh", "summary": "auto"}, "parallel_tool_calls": false,
      "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
               "verbosity": "low"},
      "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
      "top_logprobs": 3, "metadata": {"a": "b"}, "previous_response_id": "resp_1", "user": "u",
      "truncation": "disabled", "service_tier": "auto", "prompt_cache_key": "k", "odd": 1)");
  EXPECT_EQ(request.max_tokens, 50);
  EXPECT_EQ(request.sampling.temperature, 0.5);
  EXPECT_TRUE(request.stream);
  EXPECT_FALSE(request.store);
  EXPECT_EQ(request.effort, ReasoningEffort::max);
  EXPECT_FALSE(request.tool_policy.parallel);
  EXPECT_EQ(request.format.kind, AnswerFormat::Kind::json_schema);
  EXPECT_EQ(request.format.name, "n");
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 3);
  EXPECT_EQ(request.previous_response_id, "resp_1");
  EXPECT_EQ(request.user_id, "u");
  EXPECT_THAT(request.unknown_fields, ElementsAre("odd"));
  EXPECT_EQ(request.conversation.messages[0].content, "Be kind.");
  EXPECT_EQ(
      request.echoed.dump(),
      R"({"instructions": "Be kind.", "max_output_tokens": 50, "max_tool_calls": null, )"
      R"("parallel_tool_calls": false, "previous_response_id": "resp_1", "prompt_cache_key": "k", )"
      R"("reasoning": {"effort": "xhigh", "summary": "auto"}, "safety_identifier": null, )"
      R"("service_tier": "auto", "store": false, "temperature": 0.5, )"
      R"("text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, )"
      R"("verbosity": "low"}, "tool_choice": "auto", "tools": [], "top_logprobs": 3, )"
      R"("top_p": 0.9, "truncation": "disabled", "user": "u", "metadata": {"a": "b"}})");
}

TEST(ResponsesRequest, EffortNoneIsChatMode) {
  EXPECT_EQ(parse(R"("input": "x", "reasoning": {"effort": "none"})").thinking_mode,
            ThinkingMode::chat);
}

TEST(ResponsesRequest, ItemsFoldIntoTurns) {
  const ApiRequest request = parse(R"("input": [
      {"role": "developer", "content": "Be brief."},
      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                      {"type": "input_text", "text": "b"}]},
      {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "answer_xyz",
       "content": [{"type": "reasoning_text", "text": "h"}, {"type": "reasoning_text", "text": "m"}]},
      {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
        {"type": "output_text", "text": "Look:", "annotations": [], "logprobs": []}]},
      {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f",
       "arguments": "{\"a\":1}", "status": "completed"},
      {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "*** \"x\"\n"},
      {"type": "function_call", "call_id": "c3", "name": "g", "namespace": "ns", "arguments": "{}"},
      {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"},
      {"type": "function_call_output", "call_id": "c3", "output": [
        {"type": "input_text", "text": "one"}, {"type": "input_image", "image_url": "x"}]},
      {"type": "function_call_output", "call_id": "c1", "output": "1"},
      {"type": "message", "role": "assistant", "content": "Done."},
      {"role": "user", "content": "Thanks"}])");
  const auto& messages = request.conversation.messages;
  ASSERT_EQ(messages.size(), 8u);
  EXPECT_EQ(messages[0].role, Role::system);
  EXPECT_EQ(messages[1].content, "a\n\nb");
  EXPECT_EQ(messages[2].reasoning_content, "hm");
  EXPECT_EQ(messages[2].answer_pointer, "answer_xyz");
  EXPECT_EQ(messages[2].content, "Look:");
  ASSERT_EQ(messages[2].tool_calls.size(), 3u);
  EXPECT_EQ(messages[2].tool_calls[0].arguments, R"({"a":1})");
  EXPECT_EQ(messages[2].tool_calls[1].arguments, R"({"input": "*** \"x\"\n"})");
  EXPECT_EQ(messages[2].tool_calls[2].name, "ns__g");
  EXPECT_EQ(messages[4].content, "one\n\n[Unsupported input_image]");
  EXPECT_EQ(messages[6].content, "Done.");
  EXPECT_THAT(request.unknown_fields, IsEmpty());
}

// A response of ours, sent back as it came, is the turn that was sampled.
TEST(ResponsesRequest, TextAroundCallsIsOneText) {
  const ApiRequest request = parse(R"("input": [{"role": "user", "content": "q"},
      {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"},
      {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
      {"role": "assistant", "content": "c"},
      {"type": "function_call_output", "call_id": "c", "output": ""}])");
  EXPECT_EQ(request.conversation.messages[1].content, "a\n\nbc");
}

TEST(ResponsesRequest, Tools) {
  const ApiRequest request = parse(R"("input": "x", "tools": [
      {"type": "function", "name": "f", "description": "F", "strict": false,
       "parameters": {"type": "object", "properties": {}}},
      {"type": "function", "name": "bare", "parameters": null, "strict": null},
      {"type": "custom", "name": "patch", "description": "Edits", "format": {
        "type": "grammar", "syntax": "lark", "definition": "start: x"}},
      {"type": "namespace", "name": "ns", "description": "group", "tools": [
        {"type": "function", "name": "g", "parameters": {}}, {"type": "custom", "name": "h"}]}])");
  std::vector<std::string> tools;
  for (const Json& tool : request.conversation.messages[0].tools) tools.push_back(tool.dump());
  EXPECT_THAT(
      tools,
      ElementsAre(
          R"({"name": "f", "description": "F", "strict": false, "parameters": {"type": "object", "properties": {}}})",
          R"({"name": "bare"})",
          R"({"name": "patch", "description": "Edits", "parameters": {"type": "object", "properties": {"input": {"type": "string", "description": "Must follow this grammar (lark):\nstart: x"}}, "required": ["input"]}})",
          R"({"name": "ns__g", "parameters": {}})",
          R"({"name": "ns__h", "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}})"));
  const auto names = responses_tools(request.echoed.find("tools"));
  ASSERT_EQ(names.size(), 5u);
  EXPECT_EQ(names.at("ns__h").name, "h");
  EXPECT_EQ(names.at("ns__h").name_space, "ns");
  EXPECT_TRUE(names.at("ns__h").is_custom);
  EXPECT_FALSE(names.at("f").is_custom);
}

TEST(ResponsesRequest, ToolChoice) {
  const auto policy = [](const std::string& choice) {
    return parse(R"("input": "x", "tools": [{"type": "function", "name": "f", "parameters": {}},
        {"type": "custom", "name": "c"}, {"type": "namespace", "name": "n", "description": "",
         "tools": [{"type": "function", "name": "g"}]}], "tool_choice": )" +
                 choice)
        .tool_policy;
  };
  EXPECT_EQ(policy(R"("auto")").mode, ToolMode::automatic);
  EXPECT_EQ(policy(R"("required")").mode, ToolMode::required);
  EXPECT_EQ(policy(R"("none")").mode, ToolMode::none);
  EXPECT_THAT(policy(R"({"type": "function", "name": "f"})").allowed, ElementsAre("f"));
  EXPECT_THAT(policy(R"({"type": "custom", "name": "c"})").allowed, ElementsAre("c"));
  const ToolPolicy allowed = policy(R"({"type": "allowed_tools", "mode": "auto", "tools": [
      {"type": "function", "name": "f"}, {"type": "function", "name": "g", "namespace": "n"}]})");
  EXPECT_EQ(allowed.mode, ToolMode::automatic);
  EXPECT_THAT(allowed.allowed, ElementsAre("f", "n__g"));
}

TEST(ResponsesRequest, CustomInput) {
  for (const std::string input : {"", "plain", "line\nline \"quoted\" \\ 你"}) {
    EXPECT_EQ(custom_input(custom_arguments(input)), input);
  }
  EXPECT_EQ(custom_input("{}"), "{}");
  EXPECT_EQ(custom_input("not json"), "not json");
}

TEST(ResponsesRequest, GoesOnFromAResponse) {
  const Json body = Json::parse(R"({"model": "m", "previous_response_id": "resp_1",
      "instructions": "new", "input": [
        {"type": "function_call_output", "call_id": "c", "output": "22"}]})");
  EXPECT_EQ(previous_response_id(body), "resp_1");
  EXPECT_EQ(previous_response_id(Json::parse(R"({"previous_response_id": null})")), std::nullopt);
  const Json previous =
      Json::parse(R"({"model": "m", "instructions": "old", "input": "weather?"})");
  const Json response = Json::parse(R"({"id": "resp_1", "output": [
      {"type": "reasoning", "id": "r", "summary": [], "content": [
        {"type": "reasoning_text", "text": "hm"}]},
      {"type": "function_call", "id": "f", "call_id": "c", "name": "w", "arguments": "{}"}]})");
  const ApiRequest request =
      parse_request(Api::responses, with_previous_response(body, previous, response), {});
  EXPECT_EQ(request.previous_response_id, "resp_1");
  EXPECT_EQ(prompt_of(request),
            "<｜begin▁of▁sentence｜>new<｜User｜>weather?<｜Assistant｜><think>hm</think>\n\n"
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"w\">\n\n</｜DSML｜invoke>\n"
            "</｜DSML｜tool_calls><｜end▁of▁sentence｜><｜User｜><tool_result>22</tool_result>"
            "<｜Assistant｜><think>");
}

TEST(ResponsesRequest, Refuses) {
  struct Case {
    const char* members;
    const char* param;
    const char* message;
  };
  const Case cases[] = {
      {R"("stream": false)", "input", "is missing"},
      {R"("input": [])", "input", "at least one"},
      {R"("input": 5)", "input", "array of items"},
      {R"("input": [{"type": "web_search_call"}])", "input[0].type", "message"},
      {R"("input": [{"role": "robot", "content": "x"}])", "input[0].role", "one of user"},
      {R"("input": [{"role": "user"}])", "input[0].content", "is missing"},
      {R"("input": [{"role": "user", "content": [{"type": "input_image"}]}])",
       "input[0].content[0].type", "input_image"},
      {R"("input": [{"type": "function_call_output", "call_id": "c", "output": "x"}])", "input[0]",
       "'c'"},
      {R"("input": [{"role": "user", "content": "x"}, {"type": "function_call", "call_id": "c",
          "name": "f", "arguments": "{}"}, {"role": "user", "content": "y"}])",
       "input[1]", "'c'"},
      {R"("input": [{"role": "user", "content": "x"}, {"type": "function_call", "call_id": "c",
          "name": "f"}])",
       "input[1].arguments", "is missing"},
      {R"("input": "x", "max_output_tokens": 9999999)", "max_output_tokens", "393216"},
      {R"("input": "x", "tools": [{"type": "web_search"}])", "tools[0].type", "not offered"},
      {R"("input": "x", "tools": [{"type": "namespace", "name": "n", "tools": [
          {"type": "namespace", "name": "m", "tools": []}]}])",
       "tools[0].tools[0].type", "namespace"},
      {R"("input": "x", "tools": [{"type": "function", "name": "f"}],
          "tool_choice": {"type": "function", "name": "g"})",
       "tool_choice", "'g'"},
      {R"("input": "x", "tool_choice": {"type": "web_search"})", "tool_choice.type", "not offered"},
      {R"("input": "x", "tool_choice": "required")", "tool_choice", "no tools"},
      {R"("input": "x", "text": {"format": {"type": "xml"}})", "text.format.type", "json_schema"},
      {R"("input": "x", "text": {"format": {"type": "json_schema", "name": "n"}})",
       "text.format.schema", "is missing"},
      {R"("input": "x", "reasoning": {"effort": "wild"})", "reasoning.effort", "wild"},
      {R"("input": "x", "background": true, "store": false)", "background", "stored"},
      {R"("input": "x", "conversation": "conv_1")", "conversation", "previous_response_id"},
      {R"("input": "x", "prompt": {"id": "p"})", "prompt", "stored prompts"},
      {R"("input": "x", "top_logprobs": 21)", "top_logprobs", "20"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.members);
    try {
      static_cast<void>(parse(c.members));
      ADD_FAILURE() << "was taken";
    } catch (const ApiException& e) {
      EXPECT_EQ(e.error.status, 400);
      EXPECT_EQ(e.error.param.value_or("none"), c.param);
      EXPECT_THAT(e.error.message, HasSubstr(c.message));
    }
  }
}

}  // namespace
}  // namespace hadal::protocol
