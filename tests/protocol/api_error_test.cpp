#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "api_support.h"
#include "protocol/api_common.h"
#include "protocol/api_json.h"

namespace hadal::protocol {
namespace {

using test::refusal;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

constexpr Api kAll[] = {Api::chat_completions, Api::completions, Api::responses, Api::messages};

std::string body_refusal(std::string_view body) {
  return refusal([&] { (void)parse_body(body); });
}

TEST(ApiBody, IsJsonOrSaysWhereItIsNot) {
  EXPECT_EQ(parse_body(R"( {"a": 1, "a": 2} )").dump(), R"({"a": 2})");
  EXPECT_THAT(body_refusal(""), StartsWith("400 - | the request body: not valid JSON"));
  EXPECT_THAT(body_refusal("{\"a\": 1,}"), HasSubstr("line 1, column 9"));
  EXPECT_THAT(body_refusal("{} {}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(body_refusal(std::string("{\"a\": \"\0\"}", 10)), HasSubstr("NUL"));
  EXPECT_THAT(body_refusal(R"({"a": "\ud800"})"), HasSubstr("not valid JSON"));
  EXPECT_THAT(body_refusal("{\"a\": NaN}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(body_refusal("é"), HasSubstr("last read: '\uFFFD'"));  // all of it that was read
  EXPECT_EQ(body_refusal("{\"a\": \"\xC3\x28\"}"),
            "400 - | the request body: is not valid UTF-8 from byte 7 on");
  EXPECT_EQ(body_refusal("{\"a\": \"\xE4\xB8"),
            "400 - | the request body: is not valid UTF-8 from byte 7 on");
}

TEST(ApiBody, QuotesLittleOfAnEndlessString) {
  const std::string message = body_refusal("{\"a\": \"" + std::string(100000, 'x'));
  EXPECT_THAT(message, HasSubstr("not valid JSON"));
  EXPECT_LT(message.size(), 400u);
}

TEST(ApiBody, NestsSoDeepAndNoDeeper) {
  const auto nested = [](std::size_t depth) {
    return std::string(depth, '[') + "\"[[[{{{\\\"[[[\"" + std::string(depth, ']');
  };
  EXPECT_EQ(body_refusal(nested(128)), "accepted");
  EXPECT_EQ(body_refusal(nested(129)),
            "400 - | the request body: arrays and objects nest deeper than 128 levels at byte 128");
  EXPECT_THAT(body_refusal(std::string(1000000, '{')), HasSubstr("deeper than 128"));
  std::string flat = "[";
  for (int i = 0; i < 1000; ++i) flat += "[],{},";
  EXPECT_EQ(body_refusal(flat + "0]"), "accepted");
}

ApiError context_length() {
  ApiError error;
  error.message = "too \"long\"";
  error.param = "messages";
  error.code = "context_length_exceeded";
  error.extra = {{"n_prompt_tokens", Json(Json::Integer{"9"})},
                 {"n_ctx", Json(Json::Integer{"8"})}};
  return error;
}

TEST(ApiErrorBody, HasTheFormOfItsApi) {
  const std::string openai =
      R"({"error":{"message":"too \"long\"","type":"invalid_request_error","param":"messages",)"
      R"("code":"context_length_exceeded","n_prompt_tokens":9,"n_ctx":8}})";
  EXPECT_EQ(error_body(Api::chat_completions, context_length(), "req_1"), openai);
  EXPECT_EQ(error_body(Api::completions, context_length(), "req_1"), openai);
  EXPECT_EQ(error_body(Api::responses, context_length(), "req_1"), openai);
  EXPECT_EQ(error_body(Api::messages, context_length(), "req_1"),
            R"({"type":"error","error":{"type":"invalid_request_error","message":"too \"long\"",)"
            R"("n_prompt_tokens":9,"n_ctx":8},"request_id":"req_1"})");
  EXPECT_EQ(error_body(Api::chat_completions, ApiError{.message = "m"}, ""),
            R"({"error":{"message":"m","type":"invalid_request_error","param":null,"code":null}})");
  for (const Api api : kAll) {
    EXPECT_TRUE(is_json(error_body(api, context_length(), "r")));
    EXPECT_TRUE(is_json(stream_error(api, context_length(), "r").data));
  }
}

TEST(ApiErrorBody, AnthropicHasItsOwnWordsAndNumbers) {
  struct Case {
    int status;
    const char* type;
    int anthropic_status;
    const char* anthropic_type;
  };
  for (const Case& c :
       std::initializer_list<Case>{{400, "invalid_request_error", 400, "invalid_request_error"},
                                   {401, "authentication_error", 401, "authentication_error"},
                                   {403, "permission_error", 403, "permission_error"},
                                   {404, "not_found_error", 404, "not_found_error"},
                                   {408, "timeout_error", 504, "timeout_error"},
                                   {409, "conflict_error", 409, "invalid_request_error"},
                                   {413, "request_too_large", 413, "request_too_large"},
                                   {429, "rate_limit_error", 429, "rate_limit_error"},
                                   {500, "server_error", 500, "api_error"},
                                   {503, "overloaded_error", 529, "overloaded_error"}}) {
    const ApiError error{.status = c.status, .type = c.type, .message = "m"};
    EXPECT_EQ(error_status(Api::messages, error), c.anthropic_status);
    EXPECT_THAT(error_body(Api::messages, error, "r"),
                StartsWith(std::string(R"({"type":"error","error":{"type":")") + c.anthropic_type));
    for (const Api api : {Api::chat_completions, Api::completions, Api::responses}) {
      EXPECT_EQ(error_status(api, error), c.status);
    }
  }
}

TEST(ApiErrorBody, InsideAStream) {
  const ApiError error{.status = 500, .type = "server_error", .message = "m"};
  EXPECT_EQ(test::line_of(stream_error(Api::chat_completions, error, "r")),
            R"({"error":{"message":"m","type":"server_error","param":null,"code":null}})");
  EXPECT_EQ(test::line_of(stream_error(Api::responses, error, "r")),
            R"(error {"type":"error","code":"server_error","message":"m","param":null})");
  EXPECT_EQ(
      test::line_of(stream_error(Api::messages, error, "r")),
      R"(error {"type":"error","error":{"type":"api_error","message":"m"},"request_id":"r"})");
}

TEST(ApiIds, AreTheSameInEveryReplayAndNowhereElse) {
  const ResponseIdentity identity = test::identity();
  std::set<std::string> ids;
  for (std::int32_t choice = 0; choice < 4; ++choice) {
    for (std::size_t index = 0; index < 16; ++index) {
      const std::string id = tool_call_id(Api::chat_completions, identity, choice, index);
      EXPECT_EQ(id, tool_call_id(Api::chat_completions, identity, choice, index));
      EXPECT_THAT(id, MatchesRegex("call_[0-9A-Za-z]{24}"));
      ids.insert(id);
    }
  }
  EXPECT_EQ(ids.size(), 64u);
  ResponseIdentity other = identity;
  other.nonce = "another nonce";
  EXPECT_FALSE(ids.contains(tool_call_id(Api::chat_completions, other, 0, 0)));
  EXPECT_THAT(tool_call_id(Api::messages, identity, 0, 0), MatchesRegex("toolu_[0-9A-Za-z]{24}"));
  // The derivation is a format: tool-call memory finds these ids again after an upgrade.
  EXPECT_EQ(tool_call_id(Api::responses, identity, 0, 0), "call_FLUlgXD37YFH0BnAnpAkTDne");
}

TEST(ApiJson, IsCompactAndKeepsLinesTogether) {
  JsonWriter out;
  out.begin_object().member("a", "x\n\u2028y\u0085z\u2029é").member("b", std::int64_t{-1});
  out.key("c").begin_array().number(-0.25).number(1e-7).null().boolean(true).begin_object();
  out.end_object().raw("[1]").end_array().key("d").begin_array().end_array().end_object();
  const std::string text = out.take();
  EXPECT_EQ(text,
            "{\"a\":\"x\\n\\u2028y\\u0085z\\u2029é\",\"b\":-1,"
            "\"c\":[-0.25,1e-07,null,true,{},[1]],\"d\":[]}");
  EXPECT_EQ(*Json::parse(text).find("a")->as<std::string>(), "x\n\u2028y\u0085z\u2029é");
}

}  // namespace
}  // namespace hadal::protocol
