// What a request asks for is what it gets.
#include "app_fixture.h"

namespace hadal::server {
namespace {

using test::AppTest;
using test::Reply;
using test::sse_events;
using test::TestJson;

TEST_F(AppTest, AnswersAChat) {
  says("Hello there.");
  start();
  const Reply reply = post("/v1/chat/completions", chat());
  ASSERT_EQ(reply.status, 200) << reply.body;
  const TestJson body = TestJson::parse(reply.body);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hello there.");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  const auto n_prompt = body["usage"]["prompt_tokens"].get<std::int64_t>();
  EXPECT_EQ(body["usage"]["completion_tokens"], test::answer_tokens("Hello there.").size());
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], n_prompt / 2);
  EXPECT_EQ(reply.headers.at("x-cached-tokens"), std::to_string(n_prompt / 2));
  for (const char* name : {"x-request-id", "x-stream-id", "x-seed", "x-queue-ms"}) {
    EXPECT_EQ(reply.headers.count(name), 1u) << name;
  }
  EXPECT_EQ(generator_->submitted().at(0).prompt.size(), static_cast<std::size_t>(n_prompt));
}

TEST_F(AppTest, StreamsWithEventIds) {
  says("Hello there, you.");
  start();
  TestJson body = chat("Hi", true);
  body["stream_options"] = {{"include_usage", true}};
  const Reply reply = post("/v1/chat/completions", body);
  ASSERT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  const auto events = sse_events(reply.body);
  std::string text;
  for (const auto& event : events) {
    EXPECT_TRUE(event.id.starts_with(reply.headers.at("x-stream-id") + ":")) << event.id;
    if (event.data == "[DONE]" || event.json()["choices"].empty()) continue;
    text += event.json()["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text, "Hello there, you.");
  EXPECT_EQ(events.back().data, "[DONE]");
  EXPECT_EQ(events[events.size() - 2].json()["usage"]["completion_tokens"],
            test::answer_tokens(text).size());
  std::set<std::string> ids;
  for (const auto& event : events) EXPECT_TRUE(ids.insert(event.id).second) << event.id;
}

TEST_F(AppTest, EveryApiAndAliasAnswers) {
  start();
  const TestJson messages = {{{"role", "user"}, {"content", "Hi"}}};
  for (const char* path : {"/v1/chat/completions", "/chat/completions", "/beta/chat/completions",
                           "/beta/v1/chat/completions"}) {
    EXPECT_EQ(post(path, chat()).status, 200) << path;
  }
  for (const char* path : {"/v1/completions", "/completions", "/beta/completions"}) {
    const Reply reply = post(path, {{"model", "test-model"}, {"prompt", "Hi"}, {"max_tokens", 99}});
    ASSERT_EQ(reply.status, 200) << path << reply.body;
    EXPECT_EQ(TestJson::parse(reply.body)["choices"][0]["text"], "Hello there.");
  }
  for (const char* path : {"/v1/messages", "/anthropic/v1/messages"}) {
    const Reply reply = post(path, {{"model", "claude-opus-4"},
                                    {"max_tokens", 99},
                                    {"thinking", {{"type", "disabled"}}},
                                    {"messages", messages}});
    ASSERT_EQ(reply.status, 200) << path << reply.body;
    EXPECT_EQ(TestJson::parse(reply.body)["content"][0]["text"], "Hello there.");
    EXPECT_EQ(TestJson::parse(reply.body)["stop_reason"], "end_turn");
  }
  for (const char* path : {"/v1/responses", "/responses"}) {
    const Reply reply =
        post(path, {{"model", "test-model"}, {"reasoning", {{"effort", "none"}}}, {"input", "Hi"}});
    ASSERT_EQ(reply.status, 200) << path << reply.body;
    EXPECT_EQ(TestJson::parse(reply.body)["status"], "completed");
  }
}

TEST_F(AppTest, DeepSeeksModelNamesDecideAboutThinking) {
  start();
  TestJson body = chat();
  body.erase("thinking");
  body["model"] = "deepseek-chat";
  EXPECT_EQ(
      TestJson::parse(post("/chat/completions", body).body)["choices"][0]["message"]["content"],
      "Hello there.");
  body["model"] = "deepseek-reasoner";
  const TestJson answer = TestJson::parse(post("/chat/completions", body).body);
  EXPECT_EQ(answer["choices"][0]["message"]["reasoning_content"], "Hello there.");
}

// What other conversations may begin with as well, and the engine is asked to keep.
TEST_F(AppTest, TheSystemPromptAndItsToolsAreThePreamble) {
  start();
  TestJson body = chat("Hi");
  ASSERT_EQ(post("/v1/chat/completions", body).status, 200);
  body["messages"] = {{{"role", "developer"}, {"content", "Be brief."}},
                      {{"role", "user"}, {"content", "Hi"}}};
  body["tools"] = {{{"type", "function"}, {"function", {{"name", "look"}}}}};
  ASSERT_EQ(post("/v1/chat/completions", body).status, 200);
  ASSERT_EQ(post("/v1/completions", {{"model", "alias"}, {"prompt", "Be brief."}}).status, 200);
  const auto submitted = generator_->submitted();
  EXPECT_EQ(submitted[0].preamble_tokens, 0);
  const engine::Request& r = submitted[1];
  const std::string text = test::tokenizer().decode(
      std::span(r.prompt).first(static_cast<std::size_t>(r.preamble_tokens)));
  EXPECT_TRUE(text.starts_with("<｜begin▁of▁sentence｜>Be brief.")) << text;
  EXPECT_NE(text.find("\"look\""), std::string::npos) << text;
  EXPECT_EQ(text.find("<｜User｜>"), std::string::npos) << text;
  EXPECT_EQ(submitted[2].preamble_tokens, 0);
}

TEST_F(AppTest, StopStringsEndTheAnswerAndTheGeneration) {
  says("one two STOP three");
  start();
  TestJson body = chat();
  body["stop"] = {"STOP", "never"};
  const TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "one two ");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][0]["matched_stop"], "STOP");
  EXPECT_LT(answer["usage"]["completion_tokens"].get<std::size_t>(), script_.size() - 1);
  EXPECT_EQ(generator_->n_drawn_.load(), answer["usage"]["completion_tokens"].get<std::uint64_t>());
}

TEST_F(AppTest, StopStringsDoNotMatchReasoning) {
  says("why STOP not</think>so STOP there");
  start();
  TestJson body = chat();
  body["thinking"] = {{"type", "enabled"}};
  body["stop"] = "STOP";
  const TestJson message =
      TestJson::parse(post("/v1/chat/completions", body).body)["choices"][0]["message"];
  EXPECT_EQ(message["reasoning_content"], "why STOP not");
  EXPECT_EQ(message["content"], "so ");
}

TEST_F(AppTest, CutsAtMaxTokens) {
  says("one two three four five");
  start();
  TestJson body = chat();
  body["max_tokens"] = 2;
  const TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 2);
}

TEST_F(AppTest, IgnoringTheEndGoesOnBehindIt) {
  std::vector<TokenId> script = test::answer_tokens("one");
  const std::vector<TokenId> more = test::tokenizer().encode(" two");
  script.insert(script.end(), more.begin(), more.end());
  draws(script);
  start();
  TestJson body = chat();
  body["ignore_eos"] = true;
  const TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "one two");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["completion_tokens"], script.size());
}

TEST_F(AppTest, SeveralChoicesAndPrompts) {
  scripts_ = {test::answer_tokens("first"), test::answer_tokens("second one")};
  start();
  TestJson body = chat();
  body["n"] = 2;
  TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  EXPECT_EQ(answer["choices"][0]["message"]["content"], "first");
  EXPECT_EQ(answer["choices"][1]["message"]["content"], "second one");
  const TestJson prompts = {{"model", "test-model"},
                            {"prompt", {"a", "b"}},
                            {"n", 2},
                            {"max_tokens", 50},
                            {"echo", true}};
  for (const bool stream : {false, true}) {
    TestJson asked = prompts;
    asked["stream"] = stream;
    const Reply reply = post("/v1/completions", asked);
    ASSERT_EQ(reply.status, 200) << reply.body;
    std::vector<std::string> texts(4);
    if (stream) {
      for (const auto& event : sse_events(reply.body)) {
        if (event.data == "[DONE]") continue;
        const TestJson json = event.json();
        for (const auto& choice : json["choices"]) {
          texts.at(choice["index"].get<std::size_t>()) += choice["text"].get<std::string>();
        }
      }
    } else {
      const TestJson json = TestJson::parse(reply.body);
      for (const auto& choice : json["choices"]) {
        texts.at(choice["index"].get<std::size_t>()) = choice["text"].get<std::string>();
      }
    }
    EXPECT_EQ(texts, (std::vector<std::string>{"afirst", "asecond one", "bfirst", "bsecond one"}))
        << reply.body;
  }
}

TEST_F(AppTest, Logprobs) {
  says("Yes.");
  start();
  TestJson body = chat();
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const TestJson answer = TestJson::parse(post("/v1/chat/completions", body).body);
  const TestJson& content = answer["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), script_.size() - 1);
  EXPECT_EQ(content[0]["logprob"], -0.5);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
}

}  // namespace
}  // namespace hadal::server
