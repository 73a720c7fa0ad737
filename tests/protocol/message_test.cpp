#include "protocol/message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "vectors.h"

namespace hadal::protocol {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string refusal(const std::string& messages, bool also_validate = false) {
  try {
    const Conversation conversation = conversation_from_json(Json::parse(messages));
    if (also_validate) validate(conversation);
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::invalid_argument);
    return e.what();
  }
  return "accepted";
}

TEST(Message, ReadsEveryKey) {
  const Conversation c = conversation_from_json(Json::parse(R"([
      {"role": "system", "content": "S", "tools": [{"type": "function", "function":
          {"name": "f", "parameters": {"b": 1, "a": 2.50}}}], "response_format": {"type": "object"}},
      {"role": "assistant", "content": null, "reasoning_content": "r", "mask": 1, "prefix": true,
       "tool_calls": [{"id": "c", "type": "function", "function":
          {"name": "f", "arguments": {"x": [1,2]}}}]},
      {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"},
                                                        {"type": "image_url"}]},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
       "task": "read_url"}])"));
  ASSERT_EQ(c.messages.size(), 4u);
  EXPECT_EQ(c.messages[0].tools.at(0).dump(), R"({"name": "f", "parameters": {"b": 1, "a": 2.5}})");
  EXPECT_EQ(c.messages[0].response_format->dump(), R"({"type": "object"})");
  EXPECT_EQ(c.messages[1].content, "");
  EXPECT_EQ(c.messages[1].reasoning_content, "r");
  EXPECT_TRUE(c.messages[1].wo_eos);
  EXPECT_EQ(c.messages[1].tool_calls.at(0).id, "c");
  EXPECT_EQ(c.messages[1].tool_calls.at(0).arguments, R"({"x": [1, 2]})");
  EXPECT_EQ(c.messages[2].content, "a\n\n[Unsupported image_url]");
  EXPECT_EQ(c.messages[3].content, "a\n\nb");
  EXPECT_EQ(c.messages[3].task, Task::read_url);
}

TEST(Message, RefusalsSayWhereAndWhat) {
  EXPECT_THAT(refusal(R"({"role": "user"})"),
              StartsWith("messages: found object, wanted an array"));
  EXPECT_THAT(refusal(R"([{"role": "user"}, 3])"), StartsWith("messages[1]: found number"));
  EXPECT_THAT(refusal(R"([{"role": "function"}])"),
              StartsWith("messages[0]: unknown role 'function'; known are: system, user"));
  EXPECT_THAT(refusal(R"([{"content": "x"}])"), StartsWith("messages[0]: unknown role ''"));
  EXPECT_THAT(refusal(R"([{"role": "user", "content": 5}])"),
              StartsWith("messages[0].content: found number, wanted a string"));
  EXPECT_THAT(refusal(R"([{"role": "user", "content": [{"type": "image_url"}]}])"),
              StartsWith("messages[0].content[0]: unsupported content type 'image_url'"));
  EXPECT_THAT(refusal(R"([{"role": "user", "content": "q", "task": "summary"}])"),
              StartsWith("messages[0]: unknown task 'summary'"));
  EXPECT_THAT(refusal(R"([{"role": "system", "tools": [{"name": "f"}]}])"),
              StartsWith("messages[0].tools[0]: has no 'function' object"));
  EXPECT_THAT(refusal(R"([{"role": "assistant", "tool_calls": [{"function": {}}]}])"),
              StartsWith("messages[0].tool_calls[0].function.name: is missing"));
}

TEST(Message, ValidateAcceptsARecordedConversationWithoutIds) {
  const auto vectors = test::load_vectors("official_encode.json");
  ASSERT_EQ(vectors["cases"].size(), 4u);
  for (const auto& c : vectors["cases"]) {
    SCOPED_TRACE(test::text(c, "id"));
    EXPECT_NO_THROW(validate(test::conversation(c["messages"])));
  }
}

TEST(Message, ValidateNamesTheMessage) {
  EXPECT_THAT(refusal(R"([{"role": "user", "content": "q"},
                          {"role": "tool", "tool_call_id": "c", "content": "x"}])",
                      true),
              StartsWith("messages[1]: Messages with role 'tool' must be a response"));
  const std::string call = R"({"role": "assistant", "tool_calls": [
      {"id": "c1", "function": {"name": "f"}}, {"id": "c2", "function": {"name": "f"}}]})";
  const std::string user = R"({"role": "user", "content": "q"})";
  const std::string result = R"({"role": "tool", "tool_call_id": "c1", "content": "x"})";
  EXPECT_THAT(refusal("[" + user + "," + call + "," + result + "]", true),
              HasSubstr("no tool message answers tool call 'c2'"));
  EXPECT_THAT(refusal("[" + user + "," + call + "," + result + "," + result + "]", true),
              StartsWith("messages[3]: Messages with role 'tool'"));
}

TEST(Message, AttachedToolsGoToTheHead) {
  const std::vector<Json> functions{Json::parse(R"({"name": "f"})")};
  Conversation with_system = conversation_from_json(
      Json::parse(R"([{"role": "system", "content": "S"}, {"role": "user", "content": "q"}])"));
  attach_tools(with_system, functions);
  ASSERT_EQ(with_system.messages.size(), 2u);
  EXPECT_EQ(with_system.messages[0].tools.size(), 1u);

  Conversation without =
      conversation_from_json(Json::parse(R"([{"role": "user", "content": "q"}])"));
  attach_tools(without, functions);
  ASSERT_EQ(without.messages.size(), 2u);
  EXPECT_EQ(without.messages[0].role, Role::system);
  EXPECT_THAT(render_text(without, {}), StartsWith("<｜begin▁of▁sentence｜>\n\n## Tools"));
}

}  // namespace
}  // namespace hadal::protocol
