// Text completions: requests and answers.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "api_support.h"
#include "protocol/api_dispatch.h"

namespace hadal::protocol {
namespace {

using test::refusal;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string body_with(const std::string& members) {
  return R"({"model": "m", "prompt": "p")" + (members.empty() ? "" : ", " + members) + "}";
}

ApiRequest parse(const std::string& body) {
  return parse_completions(parse_body(body), {});
}

std::string parse_refusal(const std::string& body) {
  return refusal([&] { (void)parse(body); });
}

TEST(CompletionsRequest, ReadsEveryField) {
  const ApiRequest plain = parse(body_with(""));
  EXPECT_EQ(plain.api, Api::completions);
  EXPECT_EQ(plain.thinking_mode, ThinkingMode::chat);
  EXPECT_EQ(plain.max_tokens, 16);
  EXPECT_TRUE(plain.parse_special && plain.skip_special_tokens);
  EXPECT_FALSE(plain.echo || plain.logprobs || plain.suffix || plain.prompt_logprobs);

  const ApiRequest request = parse(body_with(R"(
      "suffix": "s", "max_tokens": 5, "echo": true, "n": 3, "best_of": 3, "logprobs": 20,
      "stream": true, "stream_options": {"include_usage": true}, "parse_special": false,
      "skip_special_tokens": false, "temperature": 0, "stop": "x", "seed": 4, "user": "u",
      "prompt_logprobs": 0, "extra": 0)"));
  EXPECT_EQ(request.suffix, "s");
  EXPECT_EQ(request.max_tokens, 5);
  EXPECT_TRUE(request.echo && request.logprobs && request.stream && request.include_usage &&
              request.prompt_logprobs);
  EXPECT_FALSE(request.parse_special || request.skip_special_tokens);
  EXPECT_EQ(request.n, 3);
  EXPECT_EQ(request.top_logprobs, 20);
  EXPECT_EQ(request.sampling.temperature, 0.0);
  EXPECT_EQ(request.user_id, "u");
  EXPECT_THAT(request.stop, ElementsAre("x"));
  EXPECT_THAT(request.unknown_fields, ElementsAre("extra"));
  EXPECT_FALSE(parse(body_with(R"("suffix": "")")).suffix);
}

TEST(CompletionsRequest, PromptsHaveFourForms) {
  using Ids = std::vector<TokenId>;
  const auto prompts = [](const std::string& prompt) {
    return parse(R"({"model": "m", "prompt": )" + prompt + "}").prompts;
  };
  EXPECT_THAT(prompts("\"\""), ElementsAre(RawPrompt("")));
  EXPECT_THAT(prompts(R"(["a", "b"])"), ElementsAre(RawPrompt("a"), RawPrompt("b")));
  EXPECT_THAT(prompts("[0, 128804]"), ElementsAre(RawPrompt(Ids{0, 128804})));
  EXPECT_THAT(prompts("[[1, 2], [3]]"), ElementsAre(RawPrompt(Ids{1, 2}), RawPrompt(Ids{3})));
}

TEST(CompletionsRequest, RefusalsNameTheMember) {
  struct Case {
    const char* members;
    const char* refusal;
  };
  for (const Case& c : std::initializer_list<Case>{
           {R"("prompt": null)", "prompt | prompt: is missing"},
           {R"("prompt": 5)", "prompt | prompt: found 5, wanted a string, an array of strings"},
           {R"("prompt": {})", "prompt |"},
           {R"("prompt": [])", "prompt | prompt: is empty"},
           {R"("prompt": [[]])", "prompt[0] | prompt[0]: is empty"},
           {R"("prompt": ["a", 1])", "prompt[1] | prompt[1]: found 1, wanted a string"},
           {R"("prompt": [1, "a"])", "prompt[1] |"},
           {R"("prompt": [[1], 2])",
            "prompt[1] | prompt[1]: found 2, wanted an array of token ids"},
           {R"("prompt": [[1], ["a"]])", "prompt[1][0] |"},
           {R"("prompt": [true])", "prompt[0] |"},
           {R"("prompt": [-1])", "prompt[0] |"},
           {R"("prompt": [3000000000])", "prompt[0] |"},
           {R"("suffix": 1)", "suffix |"},
           {R"("suffix": "s", "prompt": [1])", "suffix | suffix: needs a prompt of text"},
           {R"("max_tokens": -1)", "max_tokens |"},
           {R"("max_tokens": 0)", "max_tokens | max_tokens: found 0, which asks for nothing"},
           {R"("max_tokens": 9999999)", "max_tokens |"},
           {R"("echo": 1)", "echo |"},
           {R"("n": 17)", "n |"},
           {R"("best_of": 2)", "best_of | best_of: found 2, wanted the same as n, 1"},
           {R"("logprobs": true)", "logprobs |"},
           {R"("logprobs": 21)", "logprobs |"},
           {R"("prompt_logprobs": 1)", "prompt_logprobs |"},
           {R"("parse_special": "x")", "parse_special |"},
           {R"("skip_special_tokens": 0)", "skip_special_tokens |"},
           {R"("stream_options": {})", "stream_options |"},
           {R"("temperature": 3)", "temperature |"},
           {R"("stop": [""])", "stop[0] |"}}) {
    EXPECT_THAT(parse_refusal(body_with(c.members)), StartsWith(std::string("400 ") + c.refusal))
        << c.members;
  }
  EXPECT_THAT(parse_refusal(R"({"prompt": "p"})"), StartsWith("400 model | model: is missing"));
  std::string many = "[\"p\"";
  for (int i = 0; i < 256; ++i) many += ",\"p\"";
  EXPECT_THAT(parse_refusal(body_with("\"prompt\": " + many + "]")),
              HasSubstr("prompt: has 257 prompts, at most 256 are allowed"));
  EXPECT_EQ(parse_refusal(body_with(R"("max_tokens": 0, "echo": true)")), "accepted");
  EXPECT_TRUE(parse(body_with(R"("max_tokens": 0, "echo": true, "logprobs": 1)")).prompt_logprobs);
  EXPECT_FALSE(parse(body_with(R"("max_tokens": 1, "echo": true, "logprobs": 1)")).prompt_logprobs);
}

constexpr Usage kUsage{.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 3};
const std::string kUsageJson = R"({"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,)"
                               R"("prompt_tokens_details":{"cached_tokens":4},)"
                               R"("completion_tokens_details":{"reasoning_tokens":0},)"
                               R"("prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":6})";
const std::string kHead =
    R"({"id":"cmpl-ID","object":"text_completion","created":1700000000,"model":"deepseek-v4",)"
    R"("system_fingerprint":"fp","choices":[)";

TEST(CompletionsWriter, StreamsTextAndIsDone) {
  const ApiRequest request =
      parse(body_with(R"("stream": true, "stream_options": {"include_usage": true})"));
  const auto writer = make_completions_writer(request, test::identity());
  EXPECT_THAT(
      test::run(*writer, {{.events = {ContentDelta{"a\n"}}}, {}, {.events = {ContentDelta{"b"}}}},
                {{.end = AnswerEnd::length}}, kUsage),
      ElementsAre(
          kHead + R"({"text":"a\n","index":0,"logprobs":null,"finish_reason":null}],"usage":null})",
          kHead + R"({"text":"b","index":0,"logprobs":null,"finish_reason":null}],"usage":null})",
          kHead +
              R"({"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"usage":null})",
          kHead + R"(],"usage":)" + kUsageJson + "}", "[DONE]"));
}

TEST(CompletionsWriter, NumbersChoicesPromptMajor) {
  const ApiRequest request =
      parse(R"({"model": "m", "prompt": ["p", "q"], "n": 2, "logit_bias": {}})");
  const auto writer = make_completions_writer(request, test::identity());
  EXPECT_THAT(test::run(*writer,
                        {{.choice = 3, .events = {ContentDelta{"d"}}},
                         {.choice = 0, .events = {ContentDelta{"a"}}}},
                        {{.choice = 0},
                         {.choice = 1, .end = AnswerEnd::stop_string, .detail = "##"},
                         {.choice = 2},
                         {.choice = 3, .end = AnswerEnd::length}},
                        kUsage),
              ElementsAre());
  EXPECT_EQ(
      writer->body(),
      kHead +
          R"({"text":"a","index":0,"logprobs":null,"finish_reason":"stop"},)"
          R"({"text":"","index":1,"logprobs":null,"finish_reason":"stop","matched_stop":"##"},)"
          R"({"text":"","index":2,"logprobs":null,"finish_reason":"stop"},)"
          R"({"text":"d","index":3,"logprobs":null,"finish_reason":"length"}],"usage":)" +
          kUsageJson + "}");
}

TEST(CompletionsWriter, LogprobsStandInFourArrays) {
  const std::vector<test::WriterStep> steps = {
      {.events = {ContentDelta{"é!"}}},  // echoed
      {.logprob = TokenLogprobText{"\xC3", -0.5, {{"\xC3", -0.5}, {"x", -1}}}},
      {.events = {ContentDelta{"üy"}},
       .logprob = TokenLogprobText{"\xBCy", -HUGE_VAL, {{"\xBF", -0.25}, {"\xBE", -2}}}},
      {.events = {ContentDelta{"z"}}, .logprob = TokenLogprobText{"z", std::nan(""), {}}}};
  const std::string logprobs = R"({"tokens":["�","�y","z"],"token_logprobs":[-0.5,-9999,null],)"
                               R"("top_logprobs":[{"�":-0.5,"x":-1},{"�":-0.25,"�y":-9999},null],)"
                               R"("text_offset":[2,3,4]})";
  const ApiRequest whole = parse(body_with(R"("logprobs": 2, "echo": true)"));
  const auto writer = make_completions_writer(whole, test::identity());
  (void)test::run(*writer, steps, {{}}, kUsage);
  EXPECT_EQ(writer->body(), kHead + R"({"text":"é!üyz","index":0,"logprobs":)" + logprobs +
                                R"(,"finish_reason":"stop"}],"usage":)" + kUsageJson + "}");

  // A token without text waits for the next one's chunk.
  const ApiRequest stream = parse(body_with(R"("logprobs": 0, "echo": true, "stream": true)"));
  const auto streamer = make_completions_writer(stream, test::identity());
  EXPECT_THAT(
      test::run(*streamer, steps, {{}}, kUsage),
      ElementsAre(
          kHead + R"({"text":"é!","index":0,"logprobs":null,"finish_reason":null}]})",
          kHead + R"({"text":"üy","index":0,"logprobs":{"tokens":["�","�y"],)"
                  R"("token_logprobs":[-0.5,-9999],"top_logprobs":null,"text_offset":[2,3]},)"
                  R"("finish_reason":null}]})",
          kHead + R"({"text":"z","index":0,"logprobs":{"tokens":["z"],"token_logprobs":[null],)"
                  R"("top_logprobs":null,"text_offset":[4]},"finish_reason":null}]})",
          kHead + R"({"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]})", "[DONE]"));
}

TEST(CompletionsWriter, AnErrorIsTheLastEvent) {
  const std::string error =
      R"({"error":{"message":"lost","type":"server_error","param":null,"code":null}})";
  const ApiRequest stream = parse(body_with(R"("stream": true, "n": 2)"));
  const auto streamer = make_completions_writer(stream, test::identity());
  EXPECT_THAT(
      test::run(*streamer, {},
                {{.choice = 1, .end = AnswerEnd::error, .detail = "lost"}, {.choice = 0}}, kUsage),
      ElementsAre(error));
  const auto writer = make_completions_writer(parse(body_with("")), test::identity());
  (void)test::run(*writer, {}, {{.end = AnswerEnd::error, .detail = "lost"}}, kUsage);
  EXPECT_EQ(writer->body(), error);
}

}  // namespace
}  // namespace hadal::protocol
