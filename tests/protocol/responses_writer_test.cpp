#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "answer_play.h"
#include "protocol/answer_pointer.h"
#include "protocol/api_common.h"

namespace hadal::protocol {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::ElementsAreArray;

ApiRequest request(bool stream, ThinkingMode mode = ThinkingMode::thinking,
                   const std::string& more = "") {
  ApiRequest out = parse_request(Api::responses,
                                 Json::parse(R"({"model": "m", "input": "x", "tools": [
          {"type": "function", "name": "f", "parameters": {}},
          {"type": "namespace", "name": "n", "description": "", "tools": [
            {"type": "custom", "name": "patch"}]},
          {"type": "function", "name": "ping", "parameters": {}}])" +
                                             more + "}"),
                                 {});
  out.stream = stream;
  out.thinking_mode = mode;
  return out;
}

constexpr const char* kCustomCall =
    "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"n__patch\">\n<｜DSML｜parameter name=\"input\" "
    "string=\"true\">a\n\"b\"</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

std::string item_id(const char* prefix, std::size_t index) {
  return derived_id(prefix, test::identity(), "item", 0, index);
}

TEST(ResponsesWriter, StreamOfAToolTurn) {
  const auto events = test::play(request(true), {.completion = test::kTwoCalls}).events;
  ASSERT_EQ(events.size(), 23u);
  const std::string rs = item_id("rs_", 0), msg = item_id("msg_", 1), fc = item_id("fc_", 2);
  const std::string call_id = tool_call_id(Api::responses, test::identity(), 0, 0);
  const std::string pointer = answer_pointer(test::identity(), 0);
  std::vector<std::string> lines = test::lines(events);
  // The response objects are judged elsewhere.
  EXPECT_THAT(
      lines[0],
      testing::StartsWith(
          R"(response.created {"type":"response.created","sequence_number":0,"response":{"id":"resp_R",)"));
  EXPECT_THAT(lines[1], testing::StartsWith(R"(response.in_progress {"type":)"));
  EXPECT_THAT(lines[22], testing::StartsWith(R"(response.completed {"type":)"));
  lines.erase(lines.begin() + 18, lines.end());
  lines.erase(lines.begin(), lines.begin() + 2);
  const auto at = [](const std::string& id, int index) {
    return R"("item_id":")" + id + R"(","output_index":)" + std::to_string(index);
  };
  const std::string part = R"(,"content_index":0)";
  std::vector<std::string> expected;
  const auto add = [&expected](const std::string& name, const std::string& rest) {
    const std::string type = "response." + name;
    expected.push_back(type + R"( {"type":")" + type + R"(","sequence_number":)" +
                       std::to_string(expected.size() + 2) + "," + rest + "}");
  };
  add("output_item.added",
      R"("output_index":0,"item":{"id":")" + rs +
          R"(","type":"reasoning","summary":[],"content":[],"encrypted_content":")" + pointer +
          R"(","status":"in_progress"})");
  add("content_part.added", at(rs, 0) + part + R"(,"part":{"type":"reasoning_text","text":""})");
  add("reasoning_text.delta", at(rs, 0) + part + R"(,"delta":"hm")");
  add("reasoning_text.done", at(rs, 0) + part + R"(,"text":"hm")");
  add("content_part.done", at(rs, 0) + part + R"(,"part":{"type":"reasoning_text","text":"hm"})");
  add("output_item.done",
      R"("output_index":0,"item":{"id":")" + rs +
          R"(","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}],"encrypted_content":")" +
          pointer + R"(","status":"completed"})");
  add("output_item.added",
      R"("output_index":1,"item":{"id":")" + msg +
          R"(","type":"message","role":"assistant","content":[],"status":"in_progress"})");
  add("content_part.added",
      at(msg, 1) + part +
          R"(,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":""})");
  add("output_text.delta", at(msg, 1) + part + R"(,"delta":"Look:","logprobs":[])");
  add("output_text.done", at(msg, 1) + part + R"(,"text":"Look:","logprobs":[])");
  const std::string whole =
      R"({"type":"output_text","annotations":[],"logprobs":[],"text":"Look:"})";
  add("content_part.done", at(msg, 1) + part + R"(,"part":)" + whole);
  add("output_item.done", R"("output_index":1,"item":{"id":")" + msg +
                              R"(","type":"message","role":"assistant","content":[)" + whole +
                              R"(],"status":"completed"})");
  const std::string call = R"("output_index":2,"item":{"id":")" + fc +
                           R"(","type":"function_call","call_id":")" + call_id +
                           R"(","name":"f","arguments":)";
  const std::string arguments = R"("{\"a\": \"x\\\"y\", \"n\": [1,2]}")";
  add("output_item.added", call + R"("","status":"in_progress"})");
  add("function_call_arguments.delta", at(fc, 2) + R"(,"delta":)" + arguments);
  add("function_call_arguments.done", at(fc, 2) + R"(,"name":"f","arguments":)" + arguments);
  add("output_item.done", call + arguments + R"(,"status":"completed"})");
  EXPECT_THAT(lines, ElementsAreArray(expected));
}

TEST(ResponsesWriter, FreeformToolsOfAGroup) {
  const test::Play how{.completion = kCustomCall, .step = 3};
  std::vector<std::string> types;
  json item;
  for (const SseEvent& event : test::play(request(true, ThinkingMode::chat), how).events) {
    types.push_back(event.event);
    const json data = json::parse(event.data);
    if (event.event == "response.custom_tool_call_input.delta") {
      EXPECT_EQ(data["delta"], "a\n\"b\"");
    }
    if (event.event == "response.output_item.done") item = data["item"];
  }
  EXPECT_THAT(
      types,
      ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                  "response.custom_tool_call_input.delta", "response.custom_tool_call_input.done",
                  "response.output_item.done", "response.completed"));
  EXPECT_EQ(item["type"], "custom_tool_call");
  EXPECT_EQ(item["name"], "patch");
  EXPECT_EQ(item["namespace"], "n");
  EXPECT_EQ(item["input"], "a\n\"b\"");
}

// The items that a client sees finished, and the object at the end.
void expect_joins_to(const std::vector<SseEvent>& events, const json& body) {
  json done = json::array(), last;
  std::map<std::string, std::string> deltas;
  std::map<int, int> n_open;
  std::int64_t number = 0;
  for (const SseEvent& event : events) {
    EXPECT_EQ(event.data.find('\n'), std::string::npos);
    const json data = json::parse(event.data);
    EXPECT_EQ(data["type"], event.event);
    EXPECT_EQ(data["sequence_number"], number++);
    if (event.event.ends_with(".delta")) {
      deltas[data["item_id"]] += data["delta"].get<std::string>();
    }
    for (const char* key : {"text", "arguments", "input"}) {
      if (event.event.ends_with(".done") && data.contains(key)) {
        EXPECT_EQ(data[key], deltas[data["item_id"]]);
      }
    }
    if (event.event == "response.output_item.added") n_open[data["output_index"]] = 1;
    if (event.event == "response.output_item.done") {
      n_open.erase(data["output_index"].get<int>());
      const bool is_call = data["item"]["type"].get<std::string>().ends_with("_call");
      const bool is_cut_call = is_call && data["item"]["status"] == "incomplete";
      if (!is_cut_call) done.push_back(data["item"]);
    }
    if (data.contains("response")) last = data["response"];
  }
  EXPECT_TRUE(n_open.empty());  // OpenAI's client refuses a response with items that are not done
  EXPECT_EQ(last, body);
  EXPECT_EQ(done, body["output"]);
}

TEST(ResponsesWriter, StreamsJoinToTheBody) {
  std::vector<std::string> completions = test::all_completions();
  completions.emplace_back(kCustomCall);
  for (const std::string& completion : completions) {
    SCOPED_TRACE(completion);
    for (const ThinkingMode mode : {ThinkingMode::thinking, ThinkingMode::chat}) {
      for (const AnswerEnd end : {AnswerEnd::stop, AnswerEnd::length}) {
        const test::Play whole{.completion = completion, .end = end};
        const json body = json::parse(test::play(request(false, mode), whole).body);
        for (const std::size_t step : {std::size_t{1}, std::size_t{4}, std::size_t{1000000}}) {
          test::Play how = whole;
          how.step = step;
          expect_joins_to(test::play(request(true, mode), how).events, body);
        }
      }
    }
  }
}

TEST(ResponsesWriter, Outcomes) {
  const auto played = [](const test::Play& how, const std::string& more = "") {
    const auto events = test::play(request(true, ThinkingMode::thinking, more), how).events;
    return std::pair(events.back().event, json::parse(events.back().data)["response"]);
  };
  const auto [completed, whole] = played({.completion = "a</think>b"});
  EXPECT_EQ(completed, "response.completed");
  EXPECT_EQ(whole["status"], "completed");
  EXPECT_EQ(whole["usage"].dump(),
            R"({"input_tokens":100,"input_tokens_details":{"cache_write_tokens":50,)"
            R"("cached_tokens":30},"output_tokens":7,"output_tokens_details":)"
            R"({"reasoning_tokens":2},"total_tokens":107})");
  EXPECT_EQ(whole["tools"].size(), 3u);
  EXPECT_EQ(whole["tool_choice"], "auto");

  const auto [incomplete, cut] = played({.completion = "a</think>b", .end = AnswerEnd::length});
  EXPECT_EQ(incomplete, "response.incomplete");
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_EQ(cut["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(cut["output"][1]["status"], "incomplete");

  const test::Play broken{.completion = "a</think>b", .end = AnswerEnd::error, .detail = "gone"};
  const auto [failed, error] = played(broken);
  EXPECT_EQ(failed, "response.failed");
  EXPECT_EQ(error["status"], "failed");
  EXPECT_EQ(error["error"]["code"], "server_error");
  EXPECT_EQ(error["error"]["message"], "gone");
  EXPECT_EQ(json::parse(test::play(request(false), broken).body)["error"]["message"], "gone");
  const ApiRequest background = request(false, ThinkingMode::thinking, R"(, "background": true)");
  EXPECT_EQ(json::parse(test::play(background, broken).body)["status"], "failed");
}

TEST(ResponsesWriter, ACallThatWasCutOff) {
  const test::Play how{.completion = test::kCutCall, .end = AnswerEnd::length};
  const json body = json::parse(test::play(request(false), how).body);
  ASSERT_EQ(body["output"].size(), 2u);
  EXPECT_EQ(body["output"][1]["name"], "ping");
  // In a stream it is done, as incomplete, with arguments that are not.
  json cut;
  int n_arguments = 0;
  for (const SseEvent& event : test::play(request(true), how).events) {
    if (event.event == "response.function_call_arguments.done") ++n_arguments;
    if (event.event == "response.output_item.done") cut = json::parse(event.data)["item"];
  }
  EXPECT_EQ(n_arguments, 1);
  EXPECT_EQ(cut["name"], "f");
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_FALSE(json::accept(cut["arguments"].get<std::string>()));
}

TEST(ResponsesWriter, Logprobs) {
  const ApiRequest wanted =
      request(true, ThinkingMode::chat, R"(, "include": ["message.output_text.logprobs"])");
  ASSERT_TRUE(wanted.logprobs);
  const auto events = test::play(wanted, {.completion = "abcd", .step = 2}).events;
  std::vector<std::string> deltas;
  json text;
  for (const SseEvent& event : events) {
    const json data = json::parse(event.data);
    if (event.event == "response.output_text.delta") deltas.push_back(data["logprobs"].dump());
    if (event.event == "response.output_text.done") text = data["logprobs"];
  }
  const std::string ab = R"({"bytes":[97,98],"logprob":-0.5,"token":"ab","top_logprobs":[]})";
  const std::string cd = R"({"bytes":[99,100],"logprob":-0.5,"token":"cd","top_logprobs":[]})";
  EXPECT_THAT(deltas, ElementsAre("[" + ab + "]", "[" + cd + "]"));
  EXPECT_EQ(text.dump(), "[" + ab + "," + cd + "]");
  EXPECT_EQ(json::parse(events.back().data)["response"]["output"][0]["content"][0]["logprobs"],
            text);
}

TEST(ResponsesWriter, TextOfAClientCannotBreakAnEvent) {
  const ApiRequest odd =
      request(true, ThinkingMode::thinking, R"(, "instructions": "a\u2028b\nc\u0085")");
  for (const SseEvent& event : test::play(odd, {.completion = "x"}).events) {
    EXPECT_EQ(event.data.find("\u2028"), std::string::npos);
    EXPECT_EQ(event.data.find("\u0085"), std::string::npos);
  }
}

}  // namespace
}  // namespace hadal::protocol
