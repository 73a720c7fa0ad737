// Clients that leave, are slow, or wait.
#include "app_fixture.h"

namespace hadal::server {
namespace {

using namespace std::chrono_literals;
using test::AppTest;
using test::Client;
using test::Reply;
using test::TestJson;

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
