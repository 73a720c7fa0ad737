#include "app_fixture.h"

namespace hadal::server {
namespace {

using namespace std::chrono_literals;
using test::AppTest;
using test::Client;
using test::Reply;
using test::sse_events;
using test::TestJson;

// The error object, whatever the API.
TestJson error_of(const Reply& reply) {
  return TestJson::parse(reply.body).at("error");
}

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

TEST_F(AppTest, RefusesWithTheStatusAndShapeOfTheApi) {
  start();
  struct Case {
    std::string path, body;
    int status;
    std::string type;
  };
  const std::string deep = std::string(200, '[') + std::string(200, ']');
  const std::string ok_messages = R"("messages": [{"role": "user", "content": "x"}])";
  std::string many;
  for (int i = 0; i < 5000; ++i) many += "word ";
  const std::vector<Case> cases = {
      {"/v1/chat/completions", "", 400, "invalid_request_error"},
      {"/v1/chat/completions", "{", 400, "invalid_request_error"},
      {"/v1/chat/completions", "[]", 400, "invalid_request_error"},
      {"/v1/chat/completions", "{\"model\": \"\xff\"}", 400, "invalid_request_error"},
      {"/v1/chat/completions", deep, 400, "invalid_request_error"},
      {"/v1/chat/completions", "{\"model\": \"nope\", " + ok_messages + "}", 404,
       "not_found_error"},
      {"/v1/chat/completions", R"({"model": "test-model", "messages": []})", 400,
       "invalid_request_error"},
      {"/v1/chat/completions",
       "{\"model\": \"test-model\", \"temperature\": 9, " + ok_messages + "}", 400,
       "invalid_request_error"},
      {"/v1/chat/completions",
       "{\"model\": \"test-model\", \"logit_bias\": {\"99999999\": 1}, " + ok_messages + "}", 400,
       "invalid_request_error"},
      {"/v1/chat/completions",
       R"({"model": "test-model", "messages": [{"role": "user", "content": ")" + many + "\"}]}",
       400, "invalid_request_error"},
      {"/v1/chat/completions",
       "{\"model\": \"test-model\", \"stream_id\": \"a b\", " + ok_messages + "}", 400,
       "invalid_request_error"},
      {"/v1/completions", R"({"model": "test-model", "prompt": [1, 99999999]})", 400,
       "invalid_request_error"},
      {"/v1/messages", R"({"model": "gpt-4", "max_tokens": 1, )" + ok_messages + "}", 400,
       "invalid_request_error"},
      {"/v1/messages", R"({"model": "claude-x", )" + ok_messages + "}", 400,
       "invalid_request_error"},
      {"/v1/responses",
       R"({"model": "test-model", "input": "x", "previous_response_id": "resp_no"})", 400,
       "invalid_request_error"},
      {"/v1/nothing", "{}", 404, "not_found_error"},
      {"/detokenize", R"({"tokens": [-1]})", 400, "invalid_request_error"},
      {"/tokenize", R"({})", 400, "invalid_request_error"},
  };
  for (const Case& c : cases) {
    const Reply reply = connect().ask("POST", c.path, c.body);
    EXPECT_EQ(reply.status, c.status) << c.path << c.body.substr(0, 100) << reply.body;
    EXPECT_EQ(error_of(reply)["type"], c.type) << reply.body;
    EXPECT_FALSE(error_of(reply)["message"].get<std::string>().empty());
    if (c.path == "/v1/messages") {
      EXPECT_EQ(TestJson::parse(reply.body)["type"], "error");
      EXPECT_EQ(TestJson::parse(reply.body)["request_id"], reply.headers.at("request-id"));
    }
  }
  EXPECT_EQ(app_->n_unfinished(), 0u);
  EXPECT_EQ(post("/v1/chat/completions", chat()).status, 200);  // nobody else is harmed
}

TEST_F(AppTest, SaysHowLongThePromptWas) {
  start();
  std::string many;
  for (int i = 0; i < 5000; ++i) many += "word ";
  const TestJson error = error_of(post("/v1/chat/completions", chat(many)));
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_EQ(error["n_ctx"], 4096);
  EXPECT_GT(error["n_prompt_tokens"], 4096);
}

TEST_F(AppTest, KnowsMethodsAndRequestIds) {
  start();
  const Reply wrong = get("/v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST");
  EXPECT_EQ(connect().ask("DELETE", "/health").status, 405);
  EXPECT_EQ(get("/health", {{"X-Request-Id", "mine-1"}}).headers.at("x-request-id"), "mine-1");
  EXPECT_EQ(get("/health").headers.at("x-request-id").substr(0, 4), "req_");
}

TEST_F(AppTest, BodiesAboveTheLimitGet413InTheApisShape) {
  limits_.body_bytes = 1000;
  start();
  const Reply openai = connect().ask("POST", "/v1/chat/completions", std::string(2000, 'x'));
  EXPECT_EQ(openai.status, 413);
  EXPECT_EQ(error_of(openai)["type"], "request_too_large");
  const Reply anthropic = connect().ask("POST", "/v1/messages", std::string(2000, 'x'));
  EXPECT_EQ(TestJson::parse(anthropic.body)["type"], "error");
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

TEST_F(AppTest, AnEngineErrorIsA500OrAnErrorEvent) {
  start();
  generator_->fail_after(2, "a logit was not finite");
  const Reply whole = post("/v1/chat/completions", chat());
  EXPECT_EQ(whole.status, 500);
  EXPECT_NE(error_of(whole)["message"].get<std::string>().find("finite"), std::string::npos);
  const Reply stream = post("/v1/chat/completions", chat("Hi", true));
  EXPECT_EQ(stream.status, 200);
  const auto events = sse_events(stream.body);
  EXPECT_TRUE(events.back().json().contains("error")) << events.back().data;
}

TEST_F(AppTest, AClientThatLeavesCancelsItsGeneration) {
  start();
  generator_->hold_at(1);
  std::size_t n = 0;
  for (const bool stream : {false, true}) {
    for (const bool half : {false, true}) {
      ++n;
      Client client = connect();
      client.request("POST", "/v1/chat/completions", chat("Hi", stream).dump());
      ASSERT_TRUE(generator_->wait([&](auto& g) { return g.n_drawn_ == n; }));
      if (half) {
        client.half_close();
        const Reply reply = client.reply();
        EXPECT_TRUE(reply.status == 499 || (stream && !reply.whole)) << reply.status;
        EXPECT_TRUE(client.ends_within(20'000));
      } else {
        client.close();
      }
      ASSERT_TRUE(generator_->wait([&](auto& g) { return g.cancelled_.size() == n; }));
    }
  }
  EXPECT_TRUE(settles());
  for (int i = 0; i < 2000 && server_->n_connections() > 0; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(server_->n_connections(), 0u);
}

TEST_F(AppTest, ResumableGenerationsOutliveTheirClient) {
  start();
  generator_->hold_at(1);
  TestJson body = chat("Hi", true);
  body["stream_id"] = "keep";
  Client client = connect();
  client.request("POST", "/v1/chat/completions", body.dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  client.close();
  std::this_thread::sleep_for(50ms);
  generator_->release();
  EXPECT_TRUE(settles());
  EXPECT_TRUE(generator_->wait([](auto& g) { return g.cancelled_.empty(); }));
  EXPECT_NE(get("/v1/streams/keep").body.find("[DONE]"), std::string::npos);
}

TEST_F(AppTest, ADetachedGenerationEndsAfterAWhile) {
  options_.registry.detached_ttl_s = 0.05;
  start();
  generator_->hold_at(1);
  TestJson body = chat("Hi", true);
  body["resumable"] = true;
  {
    Client client = connect();
    client.request("POST", "/v1/chat/completions", body.dump());
    ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  }
  EXPECT_TRUE(generator_->wait([](auto& g) { return !g.cancelled_.empty(); }));
}

TEST_F(AppTest, AReaderThatIsSlowSuspendsAndIsThenPreempted) {
  options_.output_bytes = 100'000;
  limits_.output_bytes = 100'000;
  limits_.send_buffer_bytes = 16'384;
  options_.registry.patience.stall_s = 0.1;
  script_ = std::vector<TokenId>(30'000, test::byte_tokens("x").front());
  script_.push_back(test::kEos);
  start();
  generator_->hold_at(2000);  // far above the limit, and not the end
  TestJson body = chat("Hi", true);
  Client client = connect(4096);
  client.request("POST", "/v1/chat/completions", body.dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return !g.preempted_.empty(); }));
  EXPECT_TRUE(generator_->wait([](auto& g) { return g.suspends_.front().second; }));
  // It reads on, and so it goes on; nothing is lost.
  generator_->release();
  const Reply reply = client.reply();
  EXPECT_TRUE(reply.whole);
  EXPECT_GE(std::ranges::count(reply.body, 'x'), 4000);
  EXPECT_NE(reply.body.find("[DONE]"), std::string::npos);
}

TEST_F(AppTest, KeepsSilentConnectionsAlive) {
  options_.registry.patience.keep_alive_s = 0.03;
  start();
  generator_->hold_prompts_ = true;
  Client stream = connect(), whole = connect(), anthropic = connect();
  stream.request("POST", "/v1/chat/completions", chat("Hi", true).dump());
  whole.request("POST", "/v1/chat/completions", chat().dump());
  EXPECT_NE(stream.read_until(": keep-alive\n\n"), std::string::npos);
  EXPECT_NE(whole.read_until("\r\n\r\n1\r\n\n\r\n"), std::string::npos);
  generator_->hold_prompts_ = false;
  generator_->hold_at(2);
  const TestJson message = {{"model", "claude-x"},
                            {"max_tokens", 9},
                            {"stream", true},
                            {"thinking", {{"type", "disabled"}}},
                            {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  anthropic.request("POST", "/v1/messages", message.dump());
  EXPECT_NE(anthropic.read_until("event: ping\ndata: {\"type\": \"ping\"}\n\n"), std::string::npos);
  generator_->release();
  const TestJson body = TestJson::parse(whole.reply().body);  // blank lines before it
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hello there.");
}

TEST_F(AppTest, WaitingTooLongIsA408) {
  options_.registry.patience.queue_s = 0.05;
  start();
  generator_->hold_prompts_ = true;
  const Reply reply = post("/v1/chat/completions", chat());
  EXPECT_EQ(reply.status, 408);
  EXPECT_EQ(error_of(reply)["type"], "timeout_error");
}

TEST_F(AppTest, AFullQueueIsA429) {
  options_.admission.max_queue_requests = 1;
  start();
  generator_->hold_prompts_ = true;
  Client first = connect();
  first.request("POST", "/v1/chat/completions", chat().dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.submitted_.size() == 1; }));
  const Reply second = post("/v1/chat/completions", chat());
  EXPECT_EQ(second.status, 429);
  EXPECT_EQ(error_of(second)["type"], "rate_limit_error");
  EXPECT_GE(std::stoi(second.headers.at("retry-after")), 1);
  generator_->hold_prompts_ = false;
  generator_->release();
  EXPECT_EQ(first.reply().status, 200);
  EXPECT_EQ(post("/v1/chat/completions", chat()).status, 200);
}

TEST_F(AppTest, KeysHaveLimits) {
  keys_ = std::make_unique<KeyRing>();
  keys_->add("one", "sk-1", {.concurrent = 1});
  keys_->add("two", "sk-2", {.output_tokens_per_minute = 3});
  keys_->add("three", "sk-3", {.max_output = 1, .max_priority = 2, .models = {"alias"}});
  start();
  const auto as = [](const char* key) {
    return std::vector<std::pair<std::string, std::string>>{
        {"Authorization", std::string("Bearer ") + key}};
  };
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/v1/models").status, 401);
  const Reply wrong = post("/v1/chat/completions", chat(), as("sk-"));
  EXPECT_EQ(wrong.status, 401);
  EXPECT_EQ(error_of(wrong)["code"], "invalid_api_key");
  EXPECT_EQ(post("/v1/messages", chat(), as("nope")).status, 401);
  EXPECT_EQ(get("/v1/models", {{"x-api-key", "sk-2"}}).status, 200);

  generator_->hold_at(1);
  Client first = connect();
  first.request("POST", "/v1/chat/completions", chat().dump(), as("sk-1"));
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  const Reply second = post("/v1/chat/completions", chat(), as("sk-1"));
  EXPECT_EQ(second.status, 429);
  EXPECT_EQ(second.headers.at("x-ratelimit-limit-requests"), "1");
  EXPECT_EQ(second.headers.at("x-ratelimit-remaining-requests"), "0");
  generator_->release();
  EXPECT_EQ(first.reply().status, 200);

  EXPECT_EQ(post("/v1/chat/completions", chat(), as("sk-2")).status, 200);
  EXPECT_TRUE(settles());
  const Reply spent = post("/v1/chat/completions", chat(), as("sk-2"));
  EXPECT_EQ(spent.status, 429);
  EXPECT_EQ(spent.headers.count("x-ratelimit-reset-output-tokens"), 1u);

  EXPECT_EQ(post("/v1/chat/completions", chat(), as("sk-3")).status, 403);
  TestJson alias = chat();
  alias["model"] = "alias";
  alias["priority"] = 3;
  EXPECT_EQ(post("/v1/chat/completions", alias, as("sk-3")).status, 403);
  alias["priority"] = 2;
  const TestJson cut = TestJson::parse(post("/v1/chat/completions", alias, as("sk-3")).body);
  EXPECT_EQ(cut["choices"][0]["finish_reason"], "length");
}

TEST_F(AppTest, AnotherKeysStreamDoesNotExist) {
  keys_ = std::make_unique<KeyRing>();
  keys_->add("one", "sk-1");
  keys_->add("two", "sk-2");
  start();
  TestJson body = chat();
  body["stream_id"] = "mine";
  EXPECT_EQ(post("/v1/chat/completions", body, {{"x-api-key", "sk-1"}}).status, 200);
  EXPECT_EQ(get("/v1/streams/mine", {{"x-api-key", "sk-1"}}).status, 200);
  EXPECT_EQ(get("/v1/streams/mine", {{"x-api-key", "sk-2"}}).status, 404);
  EXPECT_EQ(connect().ask("DELETE", "/v1/streams/mine", "", {{"x-api-key", "sk-2"}}).status, 404);
  EXPECT_EQ(post("/v1/chat/completions", body, {{"x-api-key", "sk-2"}}).status, 409);
}

TEST_F(AppTest, LoadingAndDraining) {
  loading_ = true;
  start();
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/ready").status, 503);
  EXPECT_EQ(get("/v1/models").status, 503);
  const Reply early = post("/v1/chat/completions", chat());
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(error_of(early)["type"], "overloaded_error");
  EXPECT_EQ(early.headers.count("retry-after"), 1u);
  EXPECT_EQ(post("/v1/messages", chat()).status, 529);
  EXPECT_EQ(get("/status.json").body, R"({"state": "loading"})");
  app_->start(backend());
  EXPECT_EQ(get("/ready").status, 200);

  generator_->hold_at(1);
  Client running = connect();
  running.request("POST", "/v1/chat/completions", chat().dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  app_->drain();
  EXPECT_EQ(get("/ready").status, 503);
  EXPECT_EQ(post("/v1/chat/completions", chat()).status, 503);
  EXPECT_EQ(get("/v1/models").status, 200);
  std::thread later([this] {
    std::this_thread::sleep_for(50ms);
    generator_->release();
  });
  EXPECT_TRUE(app_->wait_drained(20s));
  later.join();
  EXPECT_EQ(running.reply().status, 200);
}

TEST_F(AppTest, DrainingCutsWhatTakesTooLong) {
  start();
  generator_->hold_at(1);
  Client running = connect();
  running.request("POST", "/v1/chat/completions", chat().dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  app_->drain();
  EXPECT_FALSE(app_->wait_drained(30ms));
  EXPECT_EQ(running.reply().status, 503);
}

TEST_F(AppTest, AnEngineThatIsStuckIsNotHealthy) {
  start();
  generator_->stuck_seconds_ = 7;
  EXPECT_EQ(get("/health").status, 503);
}

TEST_F(AppTest, ModelsAndTokens) {
  start();
  const TestJson models = TestJson::parse(get("/v1/models").body);
  EXPECT_EQ(models["data"][0]["id"], "test-model");
  EXPECT_EQ(models["data"][1]["id"], "alias");
  EXPECT_EQ(models["data"][0]["context_length"], 4096);
  EXPECT_EQ(get("/v1/models/test-model").status, 200);
  EXPECT_EQ(get("/v1/models/other").status, 404);

  const std::string text = "Grüße, <｜User｜> 你好";
  const TestJson tokens = TestJson::parse(post("/tokenize", {{"prompt", text}}).body);
  EXPECT_EQ(tokens["count"], test::tokenizer().encode(text).size());
  const TestJson back = TestJson::parse(post("/detokenize", {{"tokens", tokens["tokens"]}}).body);
  EXPECT_EQ(back["prompt"], text);
  const TestJson rendered = TestJson::parse(post("/v1/chat/render", chat("Hi")).body);
  EXPECT_EQ(rendered["prompt"], "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>");
  const TestJson counted = TestJson::parse(
      post("/v1/messages/count_tokens", {{"model", "claude-x"},
                                         {"thinking", {{"type", "disabled"}}},
                                         {"messages", {{{"role", "user"}, {"content", "Hi"}}}}})
          .body);
  EXPECT_EQ(counted["input_tokens"], rendered["count"]);
}

TEST_F(AppTest, ServesItsWebPages) {
  start();
  const Reply page = get("/");
  ASSERT_EQ(page.status, 200);
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_NE(page.headers.at("content-security-policy").find("default-src 'none'"),
            std::string::npos);
  EXPECT_EQ(get("/", {{"If-None-Match", page.headers.at("etag")}}).status, 304);
  EXPECT_EQ(get("/status").status, 200);
  EXPECT_EQ(get("/style.css").headers.at("content-type"), "text/css; charset=utf-8");
  EXPECT_EQ(get("/../CMakeLists.txt").status, 404);
  EXPECT_EQ(post("/", {}).status, 405);
}

TEST_F(AppTest, CorsWhereItIsWanted) {
  options_.cors_origins = {"https://app.example"};
  start();
  const Reply preflight =
      connect().ask("OPTIONS", "/v1/chat/completions", "", {{"Origin", "https://app.example"}});
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(get("/health", {{"Origin", "https://evil.example"}})
                .headers.count("access-control-allow-origin"),
            0u);
}

TEST_F(AppTest, StatusHasTheDocumentedMembers) {
  start();
  generator_->hold_at(1);
  Client client = connect();
  client.request("POST", "/v1/chat/completions", chat("Hi", true).dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  const TestJson status = TestJson::parse(get("/status.json").body);
  for (const char* member : {"state", "model", "version", "started", "now", "uptime_s", "engine",
                             "cache", "journal", "http", "requests"}) {
    EXPECT_TRUE(status.contains(member)) << member;
  }
  EXPECT_EQ(status["state"], "ready");
  EXPECT_TRUE(status["journal"].is_null());
  ASSERT_EQ(status["requests"].size(), 1u);
  EXPECT_EQ(status["requests"][0]["state"], "decoding");
  EXPECT_EQ(status["requests"][0]["readers"], 1);
}

TEST_F(AppTest, MetricsHaveTheirNames) {
  start();
  EXPECT_EQ(post("/v1/chat/completions", chat()).status, 200);
  TestJson odd = chat();
  odd["flavour"] = "mint";
  EXPECT_EQ(post("/v1/chat/completions", odd).status, 200);
  EXPECT_TRUE(settles());
  const std::string text = get("/metrics").body;
  for (const char* name : {"vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:num_preemptions_total",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:request_success_total",
                           "vllm:iteration_tokens_total_bucket",
                           "vllm:time_to_first_token_seconds_bucket",
                           "vllm:inter_token_latency_seconds_bucket",
                           "vllm:request_time_per_output_token_seconds_bucket",
                           "vllm:e2e_request_latency_seconds_bucket",
                           "vllm:request_queue_time_seconds_bucket",
                           "vllm:request_prefill_time_seconds_bucket",
                           "vllm:request_decode_time_seconds_bucket",
                           "vllm:request_inference_time_seconds_bucket",
                           "vllm:request_prompt_tokens_bucket",
                           "vllm:request_generation_tokens_bucket",
                           "vllm:request_params_max_tokens_bucket",
                           "vllm:request_params_n_bucket",
                           "vllm:request_max_num_generation_tokens_bucket",
                           "vllm:spec_decode_num_drafts_total",
                           "vllm:spec_decode_num_draft_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_total",
                           "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                           "dsv4:kv_bytes",
                           "dsv4:prefix_pinned_bytes",
                           "dsv4:prefix_pinned_pages",
                           "dsv4:prefix_pinned",
                           "dsv4:kv_disk_bytes",
                           "dsv4:kv_disk_hits_total",
                           "dsv4:prefix_replay_tokens_total",
                           "dsv4:wal_append_seconds_bucket",
                           "dsv4:wal_fsync_seconds_bucket",
                           "dsv4:wal_lag_tokens",
                           "dsv4:resumed_requests_total",
                           "dsv4:turn_memory_hits_total",
                           "dsv4:client_disconnects_total"}) {
    EXPECT_NE(text.find(std::string("\n") + name + "{model_name=\"test-model\",engine=\"0\""),
              std::string::npos)
        << name;
  }
  const auto line = [&](const std::string& begin) {
    const std::size_t at = text.find("\n" + begin);
    return at == std::string::npos ? "" : text.substr(at + 1, text.find('\n', at + 1) - at - 1);
  };
  const std::string labels = "{model_name=\"test-model\",engine=\"0\"";
  EXPECT_EQ(line("vllm:request_success_total" + labels + ",finished_reason=\"stop\"}"),
            "vllm:request_success_total" + labels + ",finished_reason=\"stop\"} 2");
  EXPECT_EQ(line("dsv4:unknown_fields_total"),
            "dsv4:unknown_fields_total" + labels + ",field=\"flavour\"} 1");
  EXPECT_EQ(line("vllm:time_to_first_token_seconds_count"),
            "vllm:time_to_first_token_seconds_count" + labels + "} 2");
}

TEST_F(AppTest, ManyStreamsAtOnce) {
  start();
  generator_->hold_at(2);
  std::vector<Client> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(connect());
    clients.back().request("POST", "/v1/chat/completions", chat("Hi", true).dump());
  }
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 128; }));
  EXPECT_EQ(get("/health").status, 200);
  generator_->release();
  for (Client& client : clients) {
    const Reply reply = client.reply();
    EXPECT_TRUE(reply.whole);
    EXPECT_NE(reply.body.find("[DONE]"), std::string::npos);
  }
  EXPECT_TRUE(settles());
}

}  // namespace
}  // namespace hadal::server
