// Chat completion answers: the exact events of a stream, and the whole that they add up to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api_support.h"
#include "protocol/api_dispatch.h"
#include "protocol/dsml_parser.h"

namespace hadal::protocol {
namespace {

using test::WriterFinish;
using test::WriterStep;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr Usage kUsage{
    .prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 7, .reasoning_tokens = 2};
const std::string kUsageJson = R"({"prompt_tokens":10,"completion_tokens":7,"total_tokens":17,)"
                               R"("prompt_tokens_details":{"cached_tokens":4},)"
                               R"("completion_tokens_details":{"reasoning_tokens":2},)"
                               R"("prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":6})";

std::string head(const char* object) {
  return std::string(R"({"id":"chatcmpl-ID","object":")") + object +
         R"(","created":1700000000,"model":"deepseek-v4","system_fingerprint":"fp","choices":[)";
}
// A chunk of choice 0 without logprobs.
std::string chunk(const std::string& delta, const std::string& finish = "null") {
  return head("chat.completion.chunk") + R"({"index":0,"delta":)" + delta +
         R"(,"logprobs":null,"finish_reason":)" + finish + "}]}";
}
std::string whole(const std::string& choices) {
  return head("chat.completion") + choices + "],\"usage\":" + kUsageJson + "}";
}

struct Setup {
  bool stream = true, include_usage = false, logprobs = false, alias = false;
  ThinkingMode thinking = ThinkingMode::thinking;
  std::int32_t n = 1;
};

std::unique_ptr<ResponseWriter> writer_for(const Setup& setup) {
  ApiRequest request;
  request.stream = setup.stream;
  request.include_usage = setup.include_usage;
  request.logprobs = setup.logprobs;
  request.reasoning_alias = setup.alias;
  request.thinking_mode = setup.thinking;
  request.n = setup.n;
  return make_chat_writer(request, test::identity());
}

std::vector<std::string> stream(const std::vector<WriterStep>& steps,
                                const std::vector<WriterFinish>& finishes, Setup setup = {}) {
  setup.stream = true;
  return test::run(*writer_for(setup), steps, finishes, kUsage);
}
std::string body(const std::vector<WriterStep>& steps, const std::vector<WriterFinish>& finishes,
                 Setup setup = {}) {
  setup.stream = false;
  const auto writer = writer_for(setup);
  EXPECT_THAT(test::run(*writer, steps, finishes, kUsage), ElementsAre());
  return writer->body();
}

const std::string kRole = chunk(R"({"role":"assistant","content":""})");
const std::string kId0 = tool_call_id(Api::chat_completions, test::identity(), 0, 0);
const std::string kId1 = tool_call_id(Api::chat_completions, test::identity(), 0, 1);

TEST(ChatWriter, ReasoningThenContent) {
  const std::vector<WriterStep> steps = {{.events = {ReasoningDelta{"I th"}}},
                                         {},
                                         {.events = {ReasoningDelta{"ink"}, ContentDelta{"So"}}},
                                         {.events = {ContentDelta{"\"é\"\n"}}}};
  EXPECT_THAT(stream(steps, {{}}),
              ElementsAre(kRole, chunk(R"({"reasoning_content":"I th"})"),
                          chunk(R"({"reasoning_content":"ink"})"), chunk(R"({"content":"So"})"),
                          chunk(R"({"content":"\"é\"\n"})"), chunk("{}", "\"stop\""), "[DONE]"));
  EXPECT_EQ(body(steps, {{}}),
            whole(R"({"index":0,"message":{"role":"assistant","content":"So\"é\"\n",)"
                  R"("refusal":null,"reasoning_content":"I think"},"logprobs":null,)"
                  R"("finish_reason":"stop"})"));
}

TEST(ChatWriter, ReasoningHasAnAlias) {
  const std::vector<WriterStep> steps = {{.events = {ReasoningDelta{"r"}}}};
  EXPECT_EQ(stream(steps, {{}}, {.alias = true}).at(1),
            chunk(R"({"reasoning_content":"r","reasoning":"r"})"));
  EXPECT_THAT(
      body(steps, {{}}, {.alias = true}),
      HasSubstr(R"("content":null,"refusal":null,"reasoning_content":"r","reasoning":"r"})"));
  EXPECT_THAT(body({}, {{}}), HasSubstr(R"({"role":"assistant","content":null,"refusal":null,)"
                                        R"("reasoning_content":null})"));
  EXPECT_THAT(body({}, {{}}, {.alias = true, .thinking = ThinkingMode::chat}),
              HasSubstr(R"({"role":"assistant","content":null,"refusal":null})"));
}

TEST(ChatWriter, ToolCalls) {
  const std::vector<WriterStep> steps = {{.events = {ContentDelta{"Let me"}}},
                                         {.events = {ToolCallBegin{0, "f"}}},
                                         {.events = {ArgumentDelta{0, R"({"a": ")"}}},
                                         {.events = {ArgumentDelta{0, "x\"}"}, ToolCallEnd{0}}},
                                         // Fragments of one step share a chunk, one a call.
                                         {.events = {ToolCallBegin{1, "g"}, ArgumentDelta{1, "{"},
                                                     ArgumentDelta{1, "}"}, ToolCallEnd{1}}}};
  const auto calls = [](const std::string& entry) {
    return chunk(R"({"tool_calls":[)" + entry + "]}");
  };
  EXPECT_THAT(stream(steps, {{.end = AnswerEnd::tool_calls}}),
              ElementsAre(kRole, chunk(R"({"content":"Let me"})"),
                          calls(R"({"index":0,"id":")" + kId0 +
                                R"(","type":"function","function":{"name":"f","arguments":""}})"),
                          calls(R"({"index":0,"function":{"arguments":"{\"a\": \""}})"),
                          calls(R"({"index":0,"function":{"arguments":"x\"}"}})"),
                          calls(R"({"index":1,"id":")" + kId1 +
                                R"(","type":"function","function":{"name":"g","arguments":"{}"}})"),
                          chunk("{}", "\"tool_calls\""), "[DONE]"));
  EXPECT_EQ(body(steps, {{.end = AnswerEnd::stop}}),
            whole(R"({"index":0,"message":{"role":"assistant","content":"Let me","refusal":null,)"
                  R"("reasoning_content":null,"tool_calls":[{"id":")" +
                  kId0 +
                  R"(","type":"function","function":{"name":"f","arguments":"{\"a\": \"x\"}"}},)"
                  R"({"id":")" +
                  kId1 +
                  R"(","type":"function","function":{"name":"g","arguments":"{}"}}]},)"
                  R"("logprobs":null,"finish_reason":"tool_calls"})"));
}

TEST(ChatWriter, FragmentsOfTwoCallsInOneStep) {
  const auto lines =
      stream({{.events = {ToolCallBegin{0, "f"}, ArgumentDelta{0, "{}"}, ToolCallEnd{0},
                          ToolCallBegin{1, "g"}}},
              {.events = {ArgumentDelta{1, "{}"}, ToolCallEnd{1}, ContentDelta{"after"}}}},
             {{}});
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_THAT(lines[1], HasSubstr(R"("function":{"name":"f","arguments":"{}"}},{"index":1,)"));
  EXPECT_EQ(lines[2], chunk(R"({"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]})"));
  EXPECT_EQ(lines[3], chunk(R"({"content":"after"})"));
}

TEST(ChatWriter, ACallThatWasCutOffIsNotToBeExecuted) {
  const std::vector<WriterStep> steps = {
      {.events = {ToolCallBegin{0, "f"}, ArgumentDelta{0, "{\"a\": 1"}}}};
  EXPECT_EQ(stream(steps, {{.end = AnswerEnd::length}}).at(2), chunk("{}", "\"length\""));
  EXPECT_THAT(body(steps, {{.end = AnswerEnd::length}}), Not(HasSubstr("tool_calls")));
  // Without a complete call there is nothing to execute, whatever the caller thinks.
  EXPECT_EQ(stream(steps, {{.end = AnswerEnd::tool_calls}}).at(2), chunk("{}", "\"stop\""));
}

TEST(ChatWriter, MalformedOutputIsContent) {
  const std::vector<WriterStep> steps = {
      {.events = {ContentDelta{"a"}, Malformed{DsmlError::bad_invoke_header, "<x"}}},
      {.events = {Malformed{DsmlError::bad_invoke_header, ">"}}},
      {.events = {Malformed{DsmlError::trailing_text, "gone"}}}};
  EXPECT_THAT(stream(steps, {{}}),
              ElementsAre(kRole, chunk(R"({"content":"a<x"})"), chunk(R"({"content":">"})"),
                          chunk("{}", "\"stop\""), "[DONE]"));
  EXPECT_THAT(body(steps, {{}}), HasSubstr(R"("content":"a<x>","refusal")"));
}

TEST(ChatWriter, EveryEndHasAReason) {
  struct Case {
    AnswerEnd end;
    const char* detail;
    const char* finish;
  };
  for (const Case& c :
       std::initializer_list<Case>{{AnswerEnd::stop, "", "\"stop\""},
                                   {AnswerEnd::stop_string, "##", R"("stop","matched_stop":"##")"},
                                   {AnswerEnd::length, "", "\"length\""},
                                   {AnswerEnd::cancelled, "", "\"stop\""}}) {
    EXPECT_EQ(stream({}, {{.end = c.end, .detail = c.detail}}).at(1), chunk("{}", c.finish));
    EXPECT_THAT(body({}, {{.end = c.end, .detail = c.detail}}),
                HasSubstr(std::string(R"("finish_reason":)") + c.finish + "}]"));
  }
}

TEST(ChatWriter, AnErrorIsTheLastEvent) {
  const std::string error =
      R"({"error":{"message":"lost","type":"server_error","param":null,"code":null}})";
  const std::vector<WriterStep> steps = {{.events = {ContentDelta{"a"}}}};
  const std::vector<WriterFinish> finishes = {{.end = AnswerEnd::error, .detail = "lost"}};
  EXPECT_THAT(stream(steps, finishes, {.include_usage = true}).size(), 3u);
  EXPECT_EQ(stream(steps, finishes).back(), error);
  EXPECT_EQ(body(steps, finishes), error);
}

TEST(ChatWriter, UsageComesWhenItIsAskedFor) {
  const auto lines = stream({{.events = {ContentDelta{"a"}}}}, {{}}, {.include_usage = true});
  ASSERT_EQ(lines.size(), 5u);
  for (int i = 0; i < 3; ++i) EXPECT_THAT(lines[i], HasSubstr(R"("usage":null})"));
  EXPECT_EQ(lines[3], head("chat.completion.chunk") + "],\"usage\":" + kUsageJson + "}");
  EXPECT_EQ(lines[4], "[DONE]");
}

TEST(ChatWriter, ChoicesInterleave) {
  const std::vector<WriterStep> steps = {{.choice = 1, .events = {ContentDelta{"b"}}},
                                         {.choice = 0, .events = {ToolCallBegin{0, "f"}}},
                                         {.choice = 1, .events = {ToolCallBegin{0, "f"}}}};
  const std::vector<WriterFinish> finishes = {{.choice = 1}, {.choice = 0}};
  const auto lines = stream(steps, finishes, {.n = 2});
  ASSERT_EQ(lines.size(), 8u);
  EXPECT_THAT(lines[0], HasSubstr(R"({"index":0,"delta":{"role")"));
  EXPECT_THAT(lines[1], HasSubstr(R"({"index":1,"delta":{"role")"));
  EXPECT_THAT(lines[2], HasSubstr(R"({"index":1,"delta":{"content":"b"})"));
  EXPECT_THAT(lines[3], HasSubstr(kId0));
  EXPECT_THAT(lines[4], HasSubstr(tool_call_id(Api::chat_completions, test::identity(), 1, 0)));
  EXPECT_THAT(lines[5], HasSubstr(R"({"index":1,"delta":{},)"));
  EXPECT_THAT(lines[6], HasSubstr(R"({"index":0,"delta":{},)"));
  EXPECT_THAT(
      body(steps, finishes, {.n = 2}),
      testing::AllOf(HasSubstr(R"({"index":0,"message":{"role":"assistant","content":null)"),
                     HasSubstr(R"({"index":1,"message":{"role":"assistant","content":"b")")));
}

TEST(ChatWriter, LogprobsOfReasoningAndContentStandApart) {
  const std::vector<WriterStep> steps = {
      {.events = {ReasoningDelta{"r"}},
       .logprob = TokenLogprobText{"r", -0.5, {{"r", -0.5}, {"\xE4", -1.25}}},
       .in_reasoning = true},
      {.logprob = TokenLogprobText{"\xE4\xBD", -0.75, {}}},  // no text yet
      {.events = {ContentDelta{"你"}}, .logprob = TokenLogprobText{"\xA0", -2, {}}}};
  const std::string r = R"({"token":"r","logprob":-0.5,"bytes":[114],"top_logprobs":[)"
                        R"({"token":"r","logprob":-0.5,"bytes":[114]},)"
                        R"({"token":"�","logprob":-1.25,"bytes":[228]}]})";
  const std::string c1 = R"({"token":"�","logprob":-0.75,"bytes":[228,189],"top_logprobs":[]})";
  const std::string c2 = R"({"token":"�","logprob":-2,"bytes":[160],"top_logprobs":[]})";
  const auto lists = [](const std::string& content, const std::string& reasoning) {
    return R"("logprobs":{"content":[)" + content + R"(],"refusal":null,"reasoning_content":[)" +
           reasoning + "]}";
  };
  const auto lines = stream(steps, {{}}, {.logprobs = true});
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0], kRole);
  EXPECT_THAT(lines[1], HasSubstr(lists("", r)));
  EXPECT_THAT(lines[2], HasSubstr(lists(c1 + "," + c2, "")));
  EXPECT_THAT(lines[3], HasSubstr(R"("logprobs":null)"));
  EXPECT_THAT(body(steps, {{}}, {.logprobs = true}), HasSubstr(lists(c1 + "," + c2, r)));
  EXPECT_THAT(body({}, {{}}, {.logprobs = true}), HasSubstr(lists("", "")));
  EXPECT_THAT(body(steps, {{}}), HasSubstr(R"("logprobs":null)"));
}

// What a client would put together from the chunks of one choice.
struct Joined {
  std::string content, reasoning;
  std::vector<std::string> calls;  // ID NAME ARGUMENTS
  bool operator==(const Joined&) const = default;
};

std::string text_member(const Json& object, const char* key) {
  const Json* member = object.find(key);
  return member == nullptr || member->is_null() ? "" : *member->as<std::string>();
}

void add_message(const Json& message, Joined& joined) {
  joined.content += text_member(message, "content");
  joined.reasoning += text_member(message, "reasoning_content");
  const Json* calls = message.find("tool_calls");
  if (calls == nullptr) return;
  for (const Json& call : *calls->as<Json::Array>()) {
    const Json& function = *call.find("function");
    if (call.find("id") != nullptr) {
      joined.calls.push_back(text_member(call, "id") + " " + text_member(function, "name") + " ");
    }
    joined.calls.back() += text_member(function, "arguments");
  }
}

TEST(ChatWriter, TheStreamAddsUpToTheWhole) {
  DsmlOptions options;
  options.tools = {{"f", {{"path", "string"}, {"n", "integer"}}}};
  const std::string_view completion =
      "Let me think \xE2\x80\xA8.</think>I \"look\" é.\n\n<｜DSML｜tool_calls>\n"
      "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"path\" string=\"true\">a\"b\\\n"
      "</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" "
      "string=\"false\">[1,2]</｜DSML｜parameter>\n"
      "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n"
      "</｜DSML｜tool_calls>";
  for (const std::size_t piece : {1, 3, 7, 1000}) {
    DsmlParser parser(options);
    std::vector<WriterStep> steps;
    for (std::size_t at = 0; at < completion.size(); at += piece) {
      steps.emplace_back();
      parser.feed(completion.substr(at, piece), steps.back().events);
    }
    steps.emplace_back();
    parser.finish(steps.back().events, EndOfTurn::eos);

    Joined streamed, at_once;
    for (const std::string& line : stream(steps, {{}})) {
      if (line == "[DONE]") break;
      const Json parsed = Json::parse(line);
      for (const Json& choice : *parsed.find("choices")->as<Json::Array>()) {
        add_message(*choice.find("delta"), streamed);
      }
    }
    const Json parsed = Json::parse(body(steps, {{}}));
    add_message(*parsed.find("choices")->as<Json::Array>()->at(0).find("message"), at_once);
    EXPECT_EQ(streamed, at_once);
    EXPECT_EQ(at_once.content, "I \"look\" é.");
    EXPECT_EQ(at_once.reasoning, "Let me think \xE2\x80\xA8.");
    EXPECT_THAT(at_once.calls,
                ElementsAre(kId0 + R"( f {"path": "a\"b\\\n", "n": [1,2]})", kId1 + " f {}"));
    EXPECT_EQ(stream(steps, {{}}), stream(steps, {{}}));  // a replay
  }
}

}  // namespace
}  // namespace hadal::protocol
