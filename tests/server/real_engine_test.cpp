// The embedded model behind HTTP: what a client reads does not depend on who else asks, on what is
// cached, or on a restart in the middle.
#include <filesystem>

#include "app_fixture.h"
#include "engine/journal_log.h"
#include "grammar/grammar_cache.h"
#include "journal/recovery.h"

namespace hadal::server {
namespace {

using test::Client;
using test::Reply;
using test::sse_events;
using test::TestJson;

// As `hadal serve` puts it together.
class RealEngine : public testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        Path(testing::TempDir()) / ("hadal_real_engine_" + std::to_string(::getpid()) + "_" +
                                    testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(directory_);
    loaded_ = engine::load_model(Path(HADAL_SOURCE_DIR) / "models/hadal-bootstrap");
    runtime_ = std::make_unique<engine::Runtime>(1);
    begin();
  }
  void TearDown() override {
    end();
    std::filesystem::remove_all(directory_);
  }
  void begin() {
    journal::Recovery recovery = journal::recover(FileSystem::real(), directory_);
    std::vector<std::string> unfinished;
    for (const journal::Stream* s : recovery.unfinished()) unfinished.push_back(s->open.name);
    writer_ = std::make_unique<journal::Writer>(FileSystem::real(), directory_,
                                                journal::WriterOptions{.sync = {}}, recovery);
    log_ = std::make_unique<engine::JournalLog>(*writer_);
    engine_ =
        std::make_unique<engine::Engine>(*runtime_, *loaded_, engine::EngineOptions{}, log_.get());
    engine_->on_step([this](const engine::StepReport&) {
      if (steps_to_stand_still_ > 0 && --steps_to_stand_still_ == 0) {
        engine_->suspend("story", true);
      }
    });
    generator_ = std::make_unique<EngineGenerator>(*engine_);
    app_ = std::make_unique<App>(AppOptions{.model_name = "m"}, keys_);
    ServedModel model = served_model(*loaded_, {.id = "m"});
    grammars_ = std::make_unique<grammar::GrammarCache>(model.tokenizer);
    memory_ = std::make_unique<protocol::AnswerMemory>();
    n_resumed_ = app_->start({.model = std::move(model),
                              .generator = generator_.get(),
                              .journal = writer_.get(),
                              .memory = memory_.get(),
                              .grammars = grammars_.get()},
                             unfinished);
    HttpServerOptions http;
    http.port = 0;
    server_ = std::make_unique<HttpServer>(
        http, [this](const std::shared_ptr<Exchange>& e) { app_->handle(e); });
  }
  // The order that App asks for; what runs stays unfinished in the journal.
  void end() {
    server_->stop();
    app_->stop();
    engine_.reset();
    generator_.reset();
    (void)writer_->flush();
    log_.reset();
    writer_.reset();
    app_.reset();
    server_.reset();
  }
  Reply post(const TestJson& body) {
    return Client(server_->port()).ask("POST", "/v1/chat/completions", body.dump());
  }
  static TestJson chat(const std::string& text, std::int64_t max_tokens) {
    return {{"model", "m"},
            {"messages", {{{"role", "user"}, {"content", text}}}},
            {"thinking", {{"type", "disabled"}}},
            {"max_tokens", max_tokens},
            {"seed", 11}};
  }
  static std::string text_of(const std::string& events) {
    std::string out;
    for (const auto& event : sse_events(events)) {
      if (event.data == "[DONE]") continue;
      out += event.json()["choices"][0]["delta"].value("content", "");
    }
    return out;
  }

  Path directory_;
  std::unique_ptr<engine::LoadedModel> loaded_;
  std::unique_ptr<engine::Runtime> runtime_;
  std::unique_ptr<journal::Writer> writer_;
  std::unique_ptr<engine::JournalLog> log_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<EngineGenerator> generator_;
  KeyRing keys_;
  std::unique_ptr<grammar::GrammarCache> grammars_;
  std::unique_ptr<protocol::AnswerMemory> memory_;
  std::unique_ptr<App> app_;
  std::unique_ptr<HttpServer> server_;
  std::size_t n_resumed_ = 0;
  std::atomic<int> steps_to_stand_still_{0};  // of the stream "story", so that it is not finished
};

TEST_F(RealEngine, TheSameSeedGivesTheSameTextAloneAndInACrowd) {
  TestJson body = chat("Tell me about the sea.", 12);
  const TestJson alone = TestJson::parse(post(body).body);
  const std::string text = alone["choices"][0]["message"]["content"];
  body["stream"] = true;
  std::vector<Client> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back(server_->port());
    clients.back().request("POST", "/v1/chat/completions", body.dump());
  }
  for (Client& client : clients) EXPECT_EQ(text_of(client.reply().body), text);
}

TEST_F(RealEngine, ARestartInTheMiddleChangesNothing) {
  TestJson body = chat("Tell me a story about a ship.", 40);
  body["ignore_eos"] = true;
  const TestJson whole = TestJson::parse(post(body).body);
  body["stream"] = true;
  body["stream_id"] = "story";
  steps_to_stand_still_ = 15;
  Client client(server_->port());
  client.request("POST", "/v1/chat/completions", body.dump());
  ASSERT_NE(client.read_until("story:1"), std::string::npos);
  end();
  steps_to_stand_still_ = 0;
  while (client.read_more()) {
  }
  std::string seen = client.unread();
  seen.erase(0, seen.find("id: "));
  // Chunk framing stands between events; what was cut does not count.
  std::string last;
  for (std::size_t at = seen.find("id: story:"); at != std::string::npos;
       at = seen.find("id: story:", at + 1)) {
    const std::size_t line = seen.find('\n', at);
    if (seen.find("\n\n", at) != std::string::npos) last = seen.substr(at + 4, line - at - 4);
  }
  begin();
  EXPECT_EQ(n_resumed_, 1u);
  const std::string all = Client(server_->port()).ask("GET", "/v1/streams/story").body;
  EXPECT_EQ(text_of(all), whole["choices"][0]["message"]["content"]);
  const std::string rest =
      Client(server_->port()).ask("GET", "/v1/streams/story", "", {{"Last-Event-ID", last}}).body;
  EXPECT_TRUE(all.ends_with(rest));
  EXPECT_LT(rest.size(), all.size());
}

TEST_F(RealEngine, ANextTurnReusesTheLastOne) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "All work and no play makes Jack a dull boy. ";
  TestJson body = chat(text, 8);
  const TestJson first = TestJson::parse(post(body).body);
  EXPECT_EQ(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  body["messages"].push_back(
      {{"role", "assistant"}, {"content", first["choices"][0]["message"]["content"]}});
  body["messages"].push_back({{"role", "user"}, {"content", "Go on."}});
  const TestJson second = TestJson::parse(post(body).body);
  EXPECT_GE(second["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>(), 128);
}

TEST_F(RealEngine, JsonAnswersAreJson) {
  TestJson body = chat("Give me a person.", 60);
  body["response_format"] = {
      {"type", "json_schema"},
      {"json_schema",
       {{"name", "person"},
        {"schema",
         {{"type", "object"},
          {"properties", {{"age", {{"type", "integer"}}}, {"ok", {{"type", "boolean"}}}}},
          {"required", {"age", "ok"}},
          {"additionalProperties", false}}}}}};
  const TestJson answer = TestJson::parse(post(body).body);
  const TestJson choice = answer["choices"][0];
  ASSERT_EQ(choice["finish_reason"], "stop") << answer;
  const TestJson person = TestJson::parse(choice["message"]["content"].get<std::string>());
  EXPECT_TRUE(person["age"].is_number_integer());
  EXPECT_TRUE(person["ok"].is_boolean());
}

}  // namespace
}  // namespace hadal::server
