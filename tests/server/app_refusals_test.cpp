// What is not answered: in which shape, and whom it costs what.
#include "app_fixture.h"

namespace hadal::server {
namespace {

using test::AppTest;
using test::Client;
using test::error_of;
using test::Reply;
using test::sse_events;
using test::TestJson;

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

}  // namespace
}  // namespace hadal::server
