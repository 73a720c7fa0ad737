#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "answer_play.h"
#include "protocol/answer_pointer.h"

namespace hadal::protocol {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::ElementsAreArray;

ApiRequest request(bool stream, ThinkingMode mode = ThinkingMode::thinking) {
  ApiRequest out;
  out.api = Api::messages;
  out.stream = stream;
  out.thinking_mode = mode;
  out.tools = {Json::parse(R"({"name": "f"})"), Json::parse(R"({"name": "ping"})")};
  return out;
}

std::string tool_id(std::size_t index) {
  return tool_call_id(Api::messages, test::identity(), 0, index);
}

TEST(AnthropicWriter, StreamOfAToolTurn) {
  const auto events =
      test::play(request(true), {.completion = test::kTwoCalls, .end = AnswerEnd::tool_calls})
          .events;
  const std::string signature = answer_pointer(test::identity(), 0);
  const std::string stop = R"(content_block_stop {"type":"content_block_stop","index":)";
  EXPECT_THAT(
      test::lines(events),
      ElementsAre(
          R"(message_start {"type":"message_start","message":{"id":"msg_R","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":50,"cache_read_input_tokens":30,"output_tokens":0}}})",
          R"(ping {"type":"ping"})",
          R"(content_block_start {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}})",
          R"(content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}})",
          R"(content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":")" +
              signature + R"("}})",
          stop + "0}",
          R"(content_block_start {"type":"content_block_start","index":1,"content_block":{"type":"text","text":"","citations":null}})",
          R"(content_block_delta {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Look:"}})",
          stop + "1}",
          R"(content_block_start {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":")" +
              tool_id(0) + R"(","name":"f","input":{}}})",
          R"(content_block_delta {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\": \"x\\\"y\", \"n\": [1,2]}"}})",
          stop + "2}",
          R"(content_block_start {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":")" +
              tool_id(1) + R"(","name":"ping","input":{}}})",
          R"(content_block_delta {"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}})",
          stop + "3}",
          R"(message_delta {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":20,"cache_creation_input_tokens":50,"cache_read_input_tokens":30,"output_tokens":7,"output_tokens_details":{"thinking_tokens":2}}})",
          R"(message_stop {"type":"message_stop"})"));
}

TEST(AnthropicWriter, BodyOfAToolTurn) {
  const test::Played played = test::play(request(false), {.completion = test::kTwoCalls});
  EXPECT_TRUE(played.events.empty());
  EXPECT_EQ(
      played.body,
      R"({"id":"msg_R","type":"message","role":"assistant","model":"m","content":[{"type":"thinking","thinking":"hm","signature":")" +
          answer_pointer(test::identity(), 0) +
          R"("},{"type":"text","text":"Look:","citations":null},{"type":"tool_use","id":")" +
          tool_id(0) +
          R"(","name":"f","input":{"a": "x\"y", "n": [1,2]}},{"type":"tool_use","id":")" +
          tool_id(1) +
          R"(","name":"ping","input":{}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":50,"cache_read_input_tokens":30,"output_tokens":7,"output_tokens_details":{"thinking_tokens":2}}})");
}

// What a client puts together from the events of a stream; a block that never stops is left out.
json joined(const std::vector<SseEvent>& events) {
  json message, blocks = json::array();
  std::vector<std::string> inputs;
  std::vector<bool> stopped;
  for (const SseEvent& event : events) {
    const json data = json::parse(event.data);
    EXPECT_EQ(data["type"], event.event);
    EXPECT_EQ(event.data.find('\n'), std::string::npos);
    if (event.event == "message_start") message = data["message"];
    if (event.event == "content_block_start") {
      EXPECT_EQ(data["index"], blocks.size());
      blocks.push_back(data["content_block"]);
      inputs.emplace_back(), stopped.push_back(false);
    }
    if (event.event == "content_block_delta") {
      const std::size_t i = data["index"];
      EXPECT_EQ(i + 1, blocks.size());
      const json& delta = data["delta"];
      for (const auto& [key, value] : delta.items()) {
        if (key == "partial_json") {
          inputs[i] += value.get<std::string>();
        } else if (key != "type") {
          blocks[i][key] = blocks[i][key].get<std::string>() + value.get<std::string>();
        }
      }
    }
    if (event.event == "content_block_stop") {
      const std::size_t i = data["index"];
      stopped[i] = true;
      if (blocks[i]["type"] == "tool_use") blocks[i]["input"] = json::parse(inputs[i]);
    }
    if (event.event == "message_delta") {
      message.update(data["delta"]);
      message["usage"] = data["usage"];
    }
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (stopped[i]) message["content"].push_back(blocks[i]);
  }
  return message;
}

TEST(AnthropicWriter, StreamsJoinToTheBody) {
  for (const std::string& completion : test::all_completions()) {
    SCOPED_TRACE(completion);
    for (const ThinkingMode mode : {ThinkingMode::thinking, ThinkingMode::chat}) {
      for (const AnswerEnd end : {AnswerEnd::stop, AnswerEnd::length}) {
        const json body = json::parse(
            test::play(request(false, mode), {.completion = completion, .end = end}).body);
        for (const std::size_t step : {std::size_t{1}, std::size_t{3}, std::size_t{1000000}}) {
          const test::Play how{.completion = completion, .end = end, .step = step};
          EXPECT_EQ(joined(test::play(request(true, mode), how).events), body) << step;
        }
      }
    }
  }
}

TEST(AnthropicWriter, StopReasons) {
  const auto stop = [](const test::Play& how) {
    const json body = json::parse(test::play(request(false), how).body);
    return body["stop_reason"].get<std::string>() + " " + body["stop_sequence"].dump();
  };
  EXPECT_EQ(stop({.completion = "a</think>b"}), "end_turn null");
  EXPECT_EQ(stop({.completion = "a</think>b", .end = AnswerEnd::length}), "max_tokens null");
  EXPECT_EQ(stop({.completion = "a</think>b", .end = AnswerEnd::stop_string, .detail = "END"}),
            "stop_sequence \"END\"");
  EXPECT_EQ(stop({.completion = test::kTwoCalls}), "tool_use null");
  EXPECT_EQ(stop({.completion = test::kCutCall, .end = AnswerEnd::length}), "max_tokens null");
}

// A call that was cut off is announced and never finished, and no part of the message.
TEST(AnthropicWriter, ACallThatWasCutOff) {
  const test::Play how{.completion = test::kCutCall, .end = AnswerEnd::length};
  const json body = json::parse(test::play(request(false), how).body);
  ASSERT_EQ(body["content"].size(), 2u);
  EXPECT_EQ(body["content"][1]["name"], "ping");
  std::vector<std::string> kinds;
  for (const SseEvent& event : test::play(request(true), how).events) {
    if (event.event.starts_with("content_block_st")) kinds.push_back(event.event.substr(14));
  }
  EXPECT_THAT(kinds, ElementsAre("start", "stop", "start", "stop", "start"));
}

TEST(AnthropicWriter, Errors) {
  const test::Play how{
      .completion = "a</think>b", .end = AnswerEnd::error, .detail = "the disk is gone"};
  const auto events = test::play(request(true), how).events;
  EXPECT_EQ(events.back().event, "error");
  const json data = json::parse(events.back().data);
  EXPECT_EQ(data["error"]["type"], "api_error");
  EXPECT_EQ(data["error"]["message"], "the disk is gone");
  EXPECT_EQ(json::parse(test::play(request(false), how).body)["type"], "error");
}

TEST(AnthropicWriter, UsageNeverGoesBelowZero) {
  test::Play how{.completion = ""};
  how.usage = {.prompt_tokens = 10, .cached_tokens = 8, .cache_write_tokens = 10};
  const json usage = json::parse(test::play(request(false), how).body)["usage"];
  EXPECT_EQ(usage["input_tokens"], 0);
  EXPECT_EQ(usage["cache_creation_input_tokens"], 2);
  EXPECT_EQ(usage["cache_read_input_tokens"], 8);
}

TEST(AnthropicWriter, TheSameCallsGiveTheSameBytes) {
  const test::Play how{.completion = test::kTwoCalls, .step = 2};
  EXPECT_THAT(test::lines(test::play(request(true), how).events),
              ElementsAreArray(test::lines(test::play(request(true), how).events)));
}

}  // namespace
}  // namespace hadal::protocol
