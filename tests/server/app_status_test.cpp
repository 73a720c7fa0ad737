// What a server says of itself, and how it begins and ends.
#include "app_fixture.h"

namespace hadal::server {
namespace {

using namespace std::chrono_literals;
using test::AppTest;
using test::Client;
using test::error_of;
using test::Reply;
using test::TestJson;

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

}  // namespace
}  // namespace hadal::server
