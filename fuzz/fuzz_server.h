// A server on a free port whose engine draws the same few tokens for everybody.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "core/digest.h"
#include "core/file.h"
#include "server/app.h"
#include "server/generator.h"
#include "server/http_server.h"

namespace hadal::fuzz {

// Draws four tokens and the end, before submit() returns.
class InstantGenerator final : public server::Generator {
 public:
  void submit(engine::Request request) override {
    const auto n = static_cast<std::int64_t>(request.prompt.size());
    request.sink->on_prompt({.prompt_tokens = n});
    for (std::int32_t c = 0; c < request.n_choices; ++c) {
      std::vector<engine::TokenEvent> events;
      for (std::int64_t i = 0; i < 5; ++i) {
        events.push_back({.choice = c,
                          .index = i,
                          .token = i < 4 ? static_cast<TokenId>(300 + i) : 1,
                          .is_stop_token = i == 4});
      }
      request.sink->on_tokens(events);
      request.sink->on_finish({.choice = c, .n_tokens = 5});
    }
  }
  void cancel(const std::string& /*stream*/) override {}
  void suspend(const std::string& /*stream*/, bool /*suspended*/) override {}
  void preempt(const std::string& /*stream*/) override {}
  [[nodiscard]] engine::EngineStatus status() const override { return {}; }
};

class FuzzServer {
 public:
  FuzzServer() : app_({.model_name = "m"}, keys_) {
    // OpenSSL clears itself up at exit; begun before this object is made, it outlives its threads.
    (void)sha256("");
    const io::Tokenizer tokenizer =
        io::Tokenizer::load(Path(HADAL_SOURCE_DIR) / "models/hadal-bootstrap/tokenizer.json");
    server::ServedModel model{.id = "m",
                              .aliases = {},
                              .tokenizer = tokenizer,
                              .vocab_size = tokenizer.vocab_size(),
                              .context_length = 4096,
                              .max_output_tokens = 4096,
                              .end_tokens = {1},
                              .chat_stop_tokens = {1},
                              .can_chat = true,
                              .defaults = {},
                              .fingerprint_text = {},
                              .system_fingerprint = {}};
    (void)app_.start({.model = std::move(model), .generator = &generator_});
    server::HttpServerOptions options;
    options.port = 0;
    options.limits.body_bytes = std::size_t{1} << 20;
    options.refusal = [this](int status, const std::string& message, const std::string& path) {
      return app_.refusal(status, message, path);
    };
    http_ = std::make_unique<server::HttpServer>(
        options, [this](const std::shared_ptr<server::Exchange>& e) { app_.handle(e); });
  }
  ~FuzzServer() {
    http_->stop();
    app_.stop();
  }
  [[nodiscard]] std::uint16_t port() const { return http_->port(); }

  // The head and the unchunked body of a response.
  [[nodiscard]] std::string get(const std::string& path, const std::string& last_event_id) {
    return exchange("GET " + path + " HTTP/1.0\r\nHost: h\r\nLast-Event-ID: " + last_event_id +
                    "\r\n\r\n");
  }
  // The events of a response that is made under this name.
  [[nodiscard]] std::string finished_stream(const std::string& name) {
    const std::string body =
        R"({"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}], "stream_id": ")" +
        name + "\"}";
    const std::string all =
        exchange("POST /v1/chat/completions HTTP/1.0\r\nHost: h\r\nContent-Length: " +
                 std::to_string(body.size()) + "\r\n\r\n" + body);
    while (app_.n_unfinished() > 0) std::this_thread::yield();
    return all.substr(all.find("\r\n\r\n") + 4);
  }

 private:
  [[nodiscard]] std::string exchange(const std::string& request) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::abort();
    (void)::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    std::string out;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;) {
      out.append(buffer, static_cast<std::size_t>(n));
    }
    ::close(fd);
    return out;
  }

  server::KeyRing keys_;
  InstantGenerator generator_;
  server::App app_;
  std::unique_ptr<server::HttpServer> http_;
};

}  // namespace hadal::fuzz
