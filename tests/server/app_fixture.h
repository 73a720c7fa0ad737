// A whole server over a scripted engine, and clients for it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fake_generator.h"
#include "http_client.h"
#include "protocol/chat_format.h"
#include "server/app.h"
#include "server/http_server.h"

namespace hadal::server::test {

using TestJson = nlohmann::ordered_json;

inline const io::Tokenizer& tokenizer() {
  static const io::Tokenizer loaded =
      io::Tokenizer::load(Path(HADAL_SOURCE_DIR) / "models/hadal-bootstrap/tokenizer.json");
  return loaded;
}
inline constexpr TokenId kEos = 1;

// The tokens of a text as a model would draw them, its end included.
inline std::vector<TokenId> answer_tokens(const std::string& text) {
  std::vector<TokenId> ids = tokenizer().encode(text);
  ids.push_back(kEos);
  return ids;
}
// One token a byte: the finest cut there is.
inline std::vector<TokenId> byte_tokens(const std::string& text) {
  std::vector<TokenId> ids;
  for (const char c : text) ids.push_back(tokenizer().token_id(std::string_view(&c, 1)).value());
  return ids;
}

inline ServedModel test_model() {
  ServedModel model{.id = "test-model",
                    .aliases = {"alias"},
                    .tokenizer = tokenizer(),
                    .vocab_size = tokenizer().vocab_size(),
                    .context_length = 4096,
                    .max_output_tokens = 4096,
                    .bos = 0,
                    .end_tokens = {kEos},
                    .chat_stop_tokens = {kEos},
                    .can_chat = true,
                    .defaults = {},
                    .created = 1,
                    .fingerprint_text = "test",
                    .system_fingerprint = "fp_test"};
  for (const std::string& token : protocol::default_stop_tokens(model.profile)) {
    if (const auto id = tokenizer().token_id(token); id && *id != kEos) {
      model.chat_stop_tokens.push_back(*id);
    }
  }
  return model;
}

struct SseLine {
  std::string id, event, data;
  [[nodiscard]] TestJson json() const { return TestJson::parse(data); }
};
inline std::vector<SseLine> sse_events(const std::string& text) {
  std::vector<SseLine> out;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find("\n\n", at);
    if (end == std::string::npos) end = text.size();
    SseLine line;
    bool any = false;
    std::size_t field = at;
    while (field < end) {
      std::size_t stop = std::min(text.find('\n', field), end);
      const std::string one = text.substr(field, stop - field);
      if (one.starts_with("id: ")) line.id = one.substr(4), any = true;
      if (one.starts_with("event: ")) line.event = one.substr(7), any = true;
      if (one.starts_with("data: ")) line.data = one.substr(6), any = true;
      field = stop + 1;
    }
    if (any) out.push_back(line);
    at = end + 2;
  }
  return out;
}

// The error object, whatever the API.
inline TestJson error_of(const Reply& reply) {
  return TestJson::parse(reply.body).at("error");
}

class AppTest : public testing::Test {
 protected:
  // What the model says; read when a request is submitted.
  void says(const std::string& text) { draws(answer_tokens(text)); }
  void draws(std::vector<TokenId> script) {
    const std::lock_guard lock(script_mutex_);
    script_ = std::move(script);
  }

  void start() {
    if (!keys_) keys_ = std::make_unique<KeyRing>();
    generator_ =
        std::make_unique<FakeGenerator>([this](const engine::Request&, std::int32_t choice) {
          const std::lock_guard lock(script_mutex_);
          return scripts_.empty() ? script_ : scripts_.at(static_cast<std::size_t>(choice));
        });
    options_.model_name = "test-model";
    options_.version = "0";
    app_ = std::make_unique<App>(options_, *keys_);
    if (!loading_) n_resumed_ = app_->start(backend(), unfinished_);
    HttpServerOptions http;
    http.port = 0;
    http.limits = limits_;
    http.check_headers = [this](const HttpRequest& r) { return app_->check_headers(r); };
    http.refusal = [this](int status, const std::string& message, const std::string& path) {
      return app_->refusal(status, message, path);
    };
    server_ = std::make_unique<HttpServer>(
        http, [this](const std::shared_ptr<Exchange>& e) { app_->handle(e); });
    server_->every(std::chrono::milliseconds(20), [this] { app_->tick(); });
  }
  virtual Backend backend() { return {.model = test_model(), .generator = generator_.get()}; }
  void stop() {
    if (server_) server_->stop();
    if (generator_) generator_->stop();
    flush_log();
    if (app_) app_->stop();
    generator_.reset();
    app_.reset();
    server_.reset();
  }
  virtual void flush_log() {}  // so that it holds no stream any more
  void TearDown() override { stop(); }

  Client connect(int receive_buffer = 0) { return Client(server_->port(), receive_buffer); }
  Reply post(const std::string& path, const TestJson& body,
             const std::vector<std::pair<std::string, std::string>>& headers = {}) {
    return connect().ask("POST", path, body.dump(), headers);
  }
  Reply get(const std::string& path,
            const std::vector<std::pair<std::string, std::string>>& headers = {}) {
    return connect().ask("GET", path, "", headers);
  }
  static TestJson chat(const std::string& text = "Hi", bool stream = false) {
    return {{"model", "test-model"},
            {"messages", {{{"role", "user"}, {"content", text}}}},
            {"thinking", {{"type", "disabled"}}},
            {"stream", stream}};
  }
  // Waits until everything the server began is finished.
  bool settles() {
    for (int i = 0; i < 2000 && app_->n_unfinished() > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return app_->n_unfinished() == 0;
  }

  AppOptions options_;
  HttpLimits limits_;
  bool loading_ = false;
  std::vector<std::string> unfinished_;
  std::size_t n_resumed_ = 0;
  std::mutex script_mutex_;
  std::vector<TokenId> script_ = answer_tokens("Hello there.");
  std::vector<std::vector<TokenId>> scripts_;  // by choice; else script_
  std::unique_ptr<KeyRing> keys_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<FakeGenerator> generator_;
  std::unique_ptr<App> app_;
};

}  // namespace hadal::server::test
