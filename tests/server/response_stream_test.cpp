#include "server/response_stream.h"

#include "app_fixture.h"

namespace hadal::server {
namespace {

using test::tokenizer;

ResponsePlan plan_for(const std::string& body) {
  protocol::ApiDefaults defaults;
  ResponsePlan plan{.request = protocol::parse_request(protocol::Api::chat_completions,
                                                       protocol::parse_body(body), defaults),
                    .identity = {.id = "abc",
                                 .model = "m",
                                 .system_fingerprint = {},
                                 .nonce = "0123456789abcdef"},
                    .form = nullptr,
                    .tokenizer = tokenizer(),
                    .end_of_sentence = test::kEos,
                    .prompts = {{0, 1}}};
  plan.form = std::make_shared<const AnswerForm>(
      answer_form(plan.request, test::test_model(), protocol::DsmlInReasoning::implicit_end));
  plan.n_choices = plan.request.n;
  return plan;
}

TEST(StreamPosition, PrintsAndParses) {
  for (const char* text : {"0", "12", "0.3", "7.1"}) {
    const auto position = StreamPosition::parse(text);
    ASSERT_TRUE(position) << text;
    EXPECT_EQ(position->to_string(), text);
    EXPECT_EQ(StreamPosition::parse(std::string("some:name:") + text), position);
  }
  for (const char* text : {"", "x", "1.", "1.x", "-1", "1 ", "name:"}) {
    EXPECT_FALSE(StreamPosition::parse(text)) << text;
  }
  EXPECT_LT((StreamPosition{3, 2}), (StreamPosition{4, 0}));
  EXPECT_LT((StreamPosition{3, 0}), (StreamPosition{3, 1}));
}

TEST(ResponseStream, PositionsGrowAndEveryTokenEndsAtItsOwn) {
  auto plan = std::make_shared<const ResponsePlan>(plan_for(
      R"({"model": "m", "stream": true, "thinking": {"type": "disabled"}, "n": 2,
          "messages": [{"role": "user", "content": "x"}]})"));
  ResponseStream stream(plan);
  ResponseStream::Events events;
  stream.begin({.prompt_tokens = 2}, events);
  EXPECT_EQ(events.back().position, (StreamPosition{0, 2}));  // a role each
  std::uint64_t n = 0;
  for (const TokenId token : test::answer_tokens("One two")) {
    for (const std::int32_t choice : {0, 1}) {
      const std::size_t before = events.size();
      stream.token({token, choice, 0, token == test::kEos}, nullptr, events);
      ++n;
      if (events.size() > before) {
        EXPECT_EQ(events.back().position, (StreamPosition{n, 0}));
      }
    }
  }
  stream.finish({{.choice = 0}, {.choice = 1}}, events);
  for (std::size_t i = 1; i < events.size(); ++i) {
    EXPECT_LT(events[i - 1].position, events[i].position) << i;
    EXPECT_EQ(events[i].sequence, i);
  }
  EXPECT_EQ(events.back().position.n_tokens, n);
}

TEST(AnswerReader, CountsReasoningTokensWithoutTheirClosingTag) {
  const ResponsePlan plan =
      plan_for(R"({"model": "m", "messages": [{"role": "user", "content": "x"}]})");
  AnswerReader reader(*plan.form, tokenizer());
  std::vector<protocol::DsmlEvent> events;
  const auto reasoning = tokenizer().encode("some thoughts");
  for (const TokenId token : test::answer_tokens("some thoughts</think>said")) {
    reader.feed(token, token == test::kEos, events);
  }
  EXPECT_EQ(reader.n_reasoning_tokens(), static_cast<std::int64_t>(reasoning.size()));
  EXPECT_FALSE(reader.in_reasoning());
}

// What the observer decides while tokens are drawn is what every writer decides afterwards.
TEST(AnswerReader, TheObserverEndsWhereTheReaderDoes) {
  const ResponsePlan plan = plan_for(
      R"({"model": "m", "stop": ["lo w", "zzz"], "thinking": {"type": "disabled"},
          "messages": [{"role": "user", "content": "x"}]})");
  for (const auto& tokens : {tokenizer().encode("hello world"), test::byte_tokens("hello world")}) {
    const auto observer = make_observer(plan.form, tokenizer());
    ASSERT_NE(observer, nullptr);
    AnswerReader reader(*plan.form, tokenizer());
    std::vector<protocol::DsmlEvent> events;
    bool ended = false;
    for (const TokenId token : tokens) {
      reader.feed(token, false, events);
      ended = observer->ends_with(token);
      EXPECT_EQ(ended, reader.stopped());
      if (ended) break;
    }
    EXPECT_TRUE(ended);
    EXPECT_EQ(reader.matched_stop(), "lo w");
    std::string text;
    for (const auto& event : events) text += std::get<protocol::ContentDelta>(event).text;
    EXPECT_EQ(text, "hel");
  }
  EXPECT_EQ(make_observer(plan_for(R"({"model": "m", "messages": [{"role": "user",
                                       "content": "x"}]})")
                              .form,
                          tokenizer()),
            nullptr);
}

TEST(AnswerReader, ASingleCallEndsTheAnswer) {
  const ResponsePlan plan = plan_for(
      R"({"model": "m", "thinking": {"type": "disabled"}, "parallel_tool_calls": false,
          "messages": [{"role": "user", "content": "x"}],
          "tools": [{"type": "function", "function": {"name": "f"}}]})");
  const std::string call = "<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n";
  const auto observer = make_observer(plan.form, tokenizer());
  ASSERT_NE(observer, nullptr);
  std::vector<LoggedToken> drawn;
  for (const TokenId token :
       tokenizer().encode("\n\n<｜DSML｜tool_calls>\n" + call + call + "</｜DSML｜tool_calls>")) {
    drawn.push_back({token, 0, 0, false});
    if (observer->ends_with(token)) break;
  }
  const ReadAnswer answer = read_answer(plan, 0, drawn);
  ASSERT_EQ(answer.message.tool_calls.size(), 1u);
  EXPECT_EQ(answer.message.tool_calls[0].name, "f");
  EXPECT_FALSE(answer.is_whole);
}

}  // namespace
}  // namespace hadal::server
