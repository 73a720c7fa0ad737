#include "server/http_server.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "core/error.h"
#include "http_client.h"

namespace hadal::server {
namespace {

using namespace std::chrono_literals;
using test::Client;
using test::Reply;

// Answers with what it got; /hold keeps the exchange for the test, /stream writes three pieces.
class HttpServerTest : public testing::Test {
 protected:
  void start(HttpServerOptions options = {}) {
    options.port = 0;
    server_ = std::make_unique<HttpServer>(
        std::move(options), [this](std::shared_ptr<Exchange> exchange) { handle(exchange); });
  }
  void TearDown() override {
    server_->stop();
    held_.reset();
    server_.reset();
  }
  void handle(const std::shared_ptr<Exchange>& exchange) {
    const HttpRequest& request = exchange->request();
    if (request.path == "/hold") {
      exchange->on_close([this] {
        const std::lock_guard lock(mutex_);
        left_ = true;
        changed_.notify_all();
      });
      const std::lock_guard lock(mutex_);
      held_ = exchange;
      changed_.notify_all();
    } else if (request.path == "/stream") {
      exchange->begin(200, {{"Content-Type", "text/plain"}});
      for (const char* piece : {"one ", "two ", "three"}) exchange->write(piece);
      exchange->end();
    } else if (request.path != "/drop") {
      exchange->respond(
          {.headers = {{"X-Path", request.path}}, .body = request.method + " " + request.body});
    }
  }
  std::shared_ptr<Exchange> held() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 20s, [this] { return held_ != nullptr; });
    return held_;
  }
  bool client_left() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 20s, [this] { return left_; });
  }
  Client connect(int receive_buffer = 0) { return Client(server_->port(), receive_buffer); }

  std::unique_ptr<HttpServer> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Exchange> held_;
  bool left_ = false;
};

TEST_F(HttpServerTest, AnswersSeveralRequestsOnOneConnection) {
  start();
  Client client = connect();
  for (int i = 0; i < 3; ++i) {
    const Reply reply = client.ask("POST", "/a%20b?x=1", "body" + std::to_string(i));
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, "POST body" + std::to_string(i));
    EXPECT_EQ(reply.headers.at("x-path"), "/a b");
  }
  const Reply head = client.ask("HEAD", "/x");
  EXPECT_EQ(head.headers.at("content-length"), "5");
  EXPECT_EQ(client.ask("GET", "/x").body, "GET ");
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  start();
  Client client = connect();
  std::string burst;
  for (int i = 0; i < 50; ++i) {
    burst += "POST /p" + std::to_string(i) + " HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n" +
             std::to_string(10 + i);
  }
  client.send(burst);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.reply().body, "POST " + std::to_string(10 + i));
}

TEST_F(HttpServerTest, ARequestMayComeByteByByte) {
  start();
  Client client = connect();
  const std::string text = "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
  for (const char c : text) client.send(std::string_view(&c, 1));
  EXPECT_EQ(client.reply().body, "POST abc");
}

TEST_F(HttpServerTest, ChunkedBodiesBothWays) {
  start();
  Client client = connect();
  client.send(
      "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n");
  EXPECT_EQ(client.reply().body, "POST abcdefg");
  const Reply reply = client.ask("GET", "/stream");
  EXPECT_EQ(reply.body, "one two three");
  EXPECT_TRUE(reply.whole);
  EXPECT_EQ(client.ask("GET", "/x").body, "GET ");  // the connection goes on
}

TEST_F(HttpServerTest, OldClientsGetTheBodyUpToTheEnd) {
  start();
  Client client = connect();
  client.send("GET /stream HTTP/1.0\r\n\r\n");
  const Reply reply = client.reply();
  EXPECT_EQ(reply.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(reply.body, "one two three");
  EXPECT_TRUE(client.ends_within(20'000));
}

TEST_F(HttpServerTest, Expect100Continue) {
  start();
  Client client = connect();
  client.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.reply().status, 100);
  client.send("abc");
  EXPECT_EQ(client.reply().body, "POST abc");
  client.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: wine\r\n\r\n");
  EXPECT_EQ(client.reply().status, 417);
}

TEST_F(HttpServerTest, WhatIsNoRequestGets400) {
  start();
  for (const char* text :
       {"HELLO\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/3.7\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nBad header\r\n\r\n"}) {
    Client client = connect();
    client.send(text);
    const Reply reply = client.reply();
    EXPECT_TRUE(reply.status == 400 || reply.status == 505) << text << reply.status;
    EXPECT_TRUE(client.ends_within(20'000)) << text;
  }
}

TEST_F(HttpServerTest, LargeBodiesAndHeadersAreRefusedBeforeTheyAreRead) {
  start({.limits = {.header_bytes = 1024, .body_bytes = 1000}});
  Client declared = connect();
  declared.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_EQ(declared.reply().status, 413);
  Client chunked = connect();
  chunked.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 11; ++i) chunked.send("64\r\n" + std::string(100, 'x') + "\r\n");
  EXPECT_EQ(chunked.reply().status, 413);
  Client header = connect();
  header.send("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(2000, 'x'));
  EXPECT_EQ(header.reply().status, 431);
  EXPECT_EQ(connect().ask("POST", "/x", std::string(1000, 'y')).status, 200);
}

TEST_F(HttpServerTest, ACheckOfHeadersAnswersBeforeTheBody) {
  HttpServerOptions options;
  options.check_headers = [](const HttpRequest& request) -> std::optional<HttpResponse> {
    if (request.header("authorization") == "yes") return std::nullopt;
    return HttpResponse{.status = 401, .headers = {}, .body = "no"};
  };
  start(std::move(options));
  Client client = connect();
  client.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nabc");
  EXPECT_EQ(client.reply().status, 401);
  EXPECT_EQ(connect().ask("POST", "/x", "abc", {{"Authorization", "yes"}}).status, 200);
}

TEST_F(HttpServerTest, SlowRequestsTimeOut) {
  start({.limits = {.header_ms = 100, .body_ms = 100, .idle_ms = 150}});
  Client header = connect();
  header.send("GET / HT");
  EXPECT_EQ(header.reply().status, 408);
  Client body = connect();
  body.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab");
  EXPECT_EQ(body.reply().status, 408);
  Client idle = connect();
  EXPECT_EQ(idle.ask("GET", "/x").status, 200);
  EXPECT_TRUE(idle.ends_within(20'000));
  EXPECT_TRUE(idle.unread().empty());
}

TEST_F(HttpServerTest, NoticesAClientThatLeavesWhileNothingIsWritten) {
  start();
  Client client = connect();
  client.request("GET", "/hold");
  const auto exchange = held();
  ASSERT_NE(exchange, nullptr);
  EXPECT_FALSE(exchange->closed());
  client.close();
  EXPECT_TRUE(client_left());
  EXPECT_TRUE(exchange->closed());
  exchange->respond({.headers = {}, .body = "too late"});
}

TEST_F(HttpServerTest, AHalfClosedClientStillGetsItsAnswer) {
  start();
  Client client = connect();
  client.request("GET", "/hold");
  client.half_close();
  EXPECT_TRUE(client_left());
  held()->respond({.headers = {}, .body = "here"});
  EXPECT_EQ(client.reply().body, "here");
  EXPECT_TRUE(client.ends_within(20'000));
  Client cut = connect();
  cut.send("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab");
  cut.half_close();
  EXPECT_EQ(cut.reply().status, 400);
}

TEST_F(HttpServerTest, AReaderThatIsSlowIsSeenAndThenDrains) {
  start({.limits = {.output_bytes = 100'000}});
  Client client = connect(4096);
  client.request("GET", "/hold");
  const auto exchange = held();
  std::atomic<int> drained = 0;
  exchange->on_drain([&] { ++drained; });
  exchange->begin(200, {});
  const std::string piece(100'000, 'x');
  for (int i = 0; i < 100; ++i) exchange->write(piece);
  std::this_thread::sleep_for(50ms);
  EXPECT_GT(exchange->buffered(), 100'000u);
  const int before = drained;
  while (exchange->buffered() > 50'000 && client.read_more()) {
  }
  for (int i = 0; i < 1000 && drained == before; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_GT(drained, before);
  exchange->end();
  const Reply reply = client.reply();
  EXPECT_TRUE(reply.whole);
  EXPECT_EQ(reply.body.size(), 100 * piece.size());
}

TEST_F(HttpServerTest, AnAbortedResponseIsNotWhole) {
  start();
  Client client = connect();
  client.request("GET", "/hold");
  const auto exchange = held();
  exchange->begin(200, {});
  exchange->write("half");
  exchange->abort();
  const Reply reply = client.reply();
  EXPECT_EQ(reply.body, "half");
  EXPECT_FALSE(reply.whole);
}

TEST_F(HttpServerTest, AConnectionEndsWithAnExchangeThatNobodyAnswers) {
  start();
  Client client = connect();
  client.request("GET", "/hold");
  ASSERT_NE(held(), nullptr);
  client.half_close();
  EXPECT_TRUE(client_left());
  {
    const std::lock_guard lock(mutex_);
    held_.reset();
  }
  EXPECT_TRUE(client.ends_within(20'000));
  for (int i = 0; i < 2000 && server_->n_connections() > 0; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(server_->n_connections(), 0u);
}

TEST_F(HttpServerTest, AHandlerThatForgetsToAnswerAnswers500) {
  start();
  EXPECT_EQ(connect().ask("GET", "/drop").status, 500);
}

TEST_F(HttpServerTest, TooManyConnectionsAreTurnedAway) {
  start({.limits = {.max_connections = 2}});
  Client a = connect(), b = connect();
  EXPECT_EQ(a.ask("GET", "/x").status, 200);
  EXPECT_EQ(b.ask("GET", "/x").status, 200);
  Client c = connect();
  EXPECT_EQ(c.reply().status, 503);
  a.close();
  for (int i = 0; i < 200 && server_->n_connections() > 1; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(connect().ask("GET", "/x").status, 200);
}

TEST_F(HttpServerTest, StopsAcceptingAndLetsResponsesEnd) {
  start();
  Client idle = connect(), busy = connect();
  EXPECT_EQ(idle.ask("GET", "/x").status, 200);
  busy.request("GET", "/hold");
  const auto exchange = held();
  server_->stop_accepting();
  EXPECT_TRUE(idle.ends_within(20'000));
  exchange->respond({.headers = {}, .body = "last"});
  const Reply reply = busy.reply();
  EXPECT_EQ(reply.body, "last");
  EXPECT_EQ(reply.headers.at("connection"), "close");
}

TEST(HttpServer, RefusesAnAddressThatIsTaken) {
  const Handler nothing = [](std::shared_ptr<Exchange>) {};
  const HttpServer first({.port = 0}, nothing);
  try {
    const HttpServer second({.port = first.port()}, nothing);
    FAIL() << "two servers on one port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::io);
    EXPECT_NE(std::string(error.what()).find(std::to_string(first.port())), std::string::npos);
  }
}

TEST(HttpServer, KnowsLoopbackAddresses) {
  for (const char* inside : {"127.0.0.1", "127.8.8.8", "::1", "localhost"}) {
    EXPECT_TRUE(is_loopback(inside)) << inside;
  }
  for (const char* outside : {"0.0.0.0", "::", "10.0.0.1", "example.org", ""}) {
    EXPECT_FALSE(is_loopback(outside)) << outside;
  }
}

}  // namespace
}  // namespace hadal::server
