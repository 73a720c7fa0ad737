// Clients that come back: with an event id, with the same request, after a restart.
#include <fmt/format.h>

#include <filesystem>

#include "app_fixture.h"
#include "engine/journal_log.h"
#include "journal/recovery.h"
#include "journal/writer.h"

namespace hadal::server {
namespace {

using test::AppTest;
using test::Client;
using test::Reply;
using test::sse_events;
using test::SseLine;
using test::TestJson;

std::vector<std::string> data_of(const std::vector<SseLine>& events) {
  std::vector<std::string> out;
  for (const SseLine& event : events) out.push_back(event.data);
  return out;
}

class Reattach : public AppTest {
 protected:
  static TestJson named(const std::string& id, bool stream = true) {
    TestJson body = chat("Hi", stream);
    body["stream_id"] = id;
    if (stream) body["stream_options"] = {{"include_usage", true}};
    return body;
  }
};

TEST_F(Reattach, FromEveryEventOnComesExactlyTheRest) {
  says("Hello, <b>world</b> of 你好 words.");
  start();
  const Reply whole = post("/v1/chat/completions", named("s1"));
  const std::vector<SseLine> events = sse_events(whole.body);
  ASSERT_GT(events.size(), 5u);
  const auto from_start = sse_events(get("/v1/streams/s1").body);
  EXPECT_EQ(data_of(from_start), data_of(events));
  for (std::size_t i = 0; i < events.size(); ++i) {
    const auto rest = sse_events(get("/v1/streams/s1", {{"Last-Event-ID", events[i].id}}).body);
    const std::vector<SseLine> expected(events.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                                        events.end());
    EXPECT_EQ(data_of(rest), data_of(expected)) << events[i].id;
    const std::string n = events[i].id.substr(events[i].id.rfind(':') + 1);
    EXPECT_EQ(data_of(sse_events(get("/v1/streams/s1?after=" + n).body)), data_of(expected));
  }
}

TEST_F(Reattach, FollowsAStreamThatGoesOnWithSeveralReaders) {
  says("one two three four five six");
  start();
  generator_->hold_at(2);
  Client first = connect(), second = connect();
  first.request("POST", "/v1/chat/completions", named("s2").dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 2; }));
  second.request("GET", "/v1/streams/s2?after=1");
  generator_->release();
  const auto all = sse_events(first.reply().body), rest = sse_events(second.reply().body);
  ASSERT_LT(rest.size(), all.size());
  const std::vector<SseLine> tail(all.end() - static_cast<std::ptrdiff_t>(rest.size()), all.end());
  EXPECT_EQ(data_of(rest), data_of(tail));
}

TEST_F(Reattach, TheSameRequestAgainIsNotGeneratedAgain) {
  start();
  const Reply first = post("/v1/chat/completions", named("s3"));
  const Reply again = post("/v1/chat/completions", named("s3"));
  EXPECT_EQ(data_of(sse_events(again.body)), data_of(sse_events(first.body)));
  EXPECT_EQ(generator_->submitted().size(), 1u);
  TestJson other = named("s3");
  other["temperature"] = 0.5;
  const Reply refused = post("/v1/chat/completions", other);
  EXPECT_EQ(refused.status, 409);
  EXPECT_EQ(TestJson::parse(refused.body)["error"]["type"], "conflict_error");
}

TEST_F(Reattach, AWholeResponseMayBeReadAsAStreamAndBack) {
  start();
  const Reply whole = post("/v1/chat/completions", named("s4", false));
  EXPECT_EQ(TestJson::parse(whole.body)["choices"][0]["message"]["content"], "Hello there.");
  const Reply stream = get("/v1/streams/s4");
  EXPECT_EQ(sse_events(stream.body).back().data, "[DONE]");
}

TEST_F(Reattach, StreamsCanBeStopped) {
  start();
  generator_->hold_at(1);
  Client client = connect();
  client.request("POST", "/v1/chat/completions", named("s5").dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  const Reply stopped = connect().ask("DELETE", "/v1/streams/s5");
  EXPECT_EQ(stopped.status, 200);
  EXPECT_EQ(TestJson::parse(stopped.body)["cancelled"], true);
  EXPECT_NE(client.reply().body.find("[DONE]"), std::string::npos);
  EXPECT_EQ(connect().ask("DELETE", "/v1/streams/none").status, 404);
  EXPECT_EQ(get("/v1/streams/none").status, 404);
  EXPECT_EQ(get("/v1/streams/s5?after=x").status, 400);
}

TEST_F(Reattach, AnEventFromTheFutureOfAnEndedStreamHasDiverged) {
  start();
  EXPECT_EQ(post("/v1/chat/completions", named("s6")).status, 200);
  EXPECT_TRUE(settles());
  const Reply reply = get("/v1/streams/s6?after=9999");
  EXPECT_EQ(reply.status, 409);
  const TestJson error = TestJson::parse(reply.body)["error"];
  EXPECT_EQ(error["code"], "stream_diverged");
  EXPECT_EQ(error["common_position"], script_.size());
}

TEST_F(Reattach, ResponsesByTheirSequenceNumbers) {
  start();
  const TestJson ask = {{"model", "test-model"},
                        {"reasoning", {{"effort", "none"}}},
                        {"input", "Hi"},
                        {"stream", true}};
  const auto events = sse_events(post("/v1/responses", ask).body);
  const std::string id = events[0].json()["response"]["id"];
  for (std::size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].json()["sequence_number"], i);
    const auto rest = sse_events(
        get("/v1/responses/" + id + "?stream=true&starting_after=" + std::to_string(i)).body);
    EXPECT_EQ(rest.size(), events.size() - i - 1);
  }
  EXPECT_TRUE(settles());
  const TestJson stored = TestJson::parse(get("/v1/responses/" + id).body);
  EXPECT_EQ(stored["status"], "completed");
  EXPECT_EQ(stored["id"], id);
  // The next turn goes on from it.
  const TestJson next = {{"model", "test-model"},
                         {"reasoning", {{"effort", "none"}}},
                         {"input", "And now?"},
                         {"previous_response_id", id}};
  ASSERT_EQ(post("/v1/responses", next).status, 200);
  EXPECT_EQ(test::tokenizer().decode(generator_->submitted().back().prompt),
            "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>Hello there."
            "<｜end▁of▁sentence｜><｜User｜>And now?<｜Assistant｜></think>");
  EXPECT_EQ(get("/v1/responses/resp_none").status, 404);
}

TEST_F(Reattach, BackgroundResponsesAreAskedForLater) {
  start();
  generator_->hold_at(1);
  const TestJson ask = {{"model", "test-model"},
                        {"reasoning", {{"effort", "none"}}},
                        {"input", "Hi"},
                        {"background", true}};
  const TestJson begun = TestJson::parse(post("/v1/responses", ask).body);
  const std::string id = begun["id"];
  EXPECT_TRUE(begun["status"] == "queued" || begun["status"] == "in_progress") << begun;
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 1; }));
  EXPECT_EQ(TestJson::parse(get("/v1/responses/" + id).body)["status"], "in_progress");
  generator_->release();
  EXPECT_TRUE(settles());
  EXPECT_EQ(TestJson::parse(get("/v1/responses/" + id).body)["status"], "completed");
}

// With a journal, and a server that ends in the middle.
class Restart : public Reattach {
 protected:
  void SetUp() override {
    directory_ =
        Path(testing::TempDir()) / ("hadal_restart_" + std::to_string(::getpid()) + "_" +
                                    testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override {
    AppTest::TearDown();
    log_.reset();
    writer_.reset();
    std::filesystem::remove_all(directory_);
  }
  Backend backend() override {
    generator_->set_log(log_.get());
    ServedModel model = test::test_model();
    model.fingerprint_text = fingerprint_text_;
    model.fingerprint = sha256(fingerprint_text_);
    return {.model = std::move(model), .generator = generator_.get(), .journal = writer_.get()};
  }
  void flush_log() override {
    if (writer_) {
      EXPECT_TRUE(writer_->flush());
    }
  }
  // A process begins.
  std::size_t begin() {
    journal::Recovery recovery = journal::recover(FileSystem::real(), directory_);
    unfinished_.clear();
    for (const journal::Stream* stream : recovery.unfinished())
      unfinished_.push_back(stream->open.name);
    writer_ = std::make_unique<journal::Writer>(FileSystem::real(), directory_,
                                                journal::WriterOptions{.sync = {}}, recovery);
    log_ = std::make_unique<engine::JournalLog>(*writer_);
    start();
    return n_resumed_;
  }
  // ... and is killed.
  void end() {
    stop();
    log_.reset();
    writer_.reset();
  }

  static std::string fingerprint_text(const std::string& build, const std::string& weights,
                                      const std::string& tokenizer = "t") {
    return fmt::format("hadal {}\nnumerics official\nweights {}\nconfig c\ntokenizer {}\n", build,
                       weights, tokenizer);
  }

  Path directory_;
  std::string fingerprint_text_ = fingerprint_text("1", "aaaa");
  std::unique_ptr<journal::Writer> writer_;
  std::unique_ptr<engine::JournalLog> log_;
};

TEST_F(Restart, AResumableStreamGoesOnWhereItStood) {
  says("one two three four five six seven eight");
  begin();
  const auto uninterrupted = sse_events(post("/v1/chat/completions", named("whole")).body);
  const auto text = [](const std::vector<SseLine>& events) {
    std::string out;
    for (const SseLine& event : events) {
      if (event.data == "[DONE]" || event.json()["choices"].empty()) continue;
      out += event.json()["choices"][0]["delta"].value("content", "");
    }
    return out;
  };
  // Up to here before the crash.
  const auto n = static_cast<std::int64_t>(test::tokenizer().encode("one two three").size());
  const auto whole_n = static_cast<std::uint64_t>(script_.size());
  generator_->hold_at(n);
  std::vector<SseLine> before;
  {
    Client client = connect();
    client.request("POST", "/v1/chat/completions", named("r").dump());
    ASSERT_TRUE(generator_->wait(
        [&](auto& g) { return g.n_drawn_ == whole_n + static_cast<std::uint64_t>(n); }));
    ASSERT_NE(client.read_until(" three"), std::string::npos);
    std::string seen = client.unread();
    before = sse_events(seen.substr(seen.find("id: ")));
  }
  end();

  EXPECT_EQ(begin(), 1u);
  const engine::Request resumed = generator_->submitted().at(0);
  EXPECT_EQ(resumed.drawn.at(0).tokens, std::vector<TokenId>(script_.begin(), script_.begin() + n));
  const auto rest =
      sse_events(get("/v1/streams/r", {{"Last-Event-ID", "r:" + std::to_string(n - 1)}}).body);
  EXPECT_EQ(rest.front().id, "r:" + std::to_string(n));
  const auto all = sse_events(get("/v1/streams/r").body);
  EXPECT_EQ(text(all), text(uninterrupted));
  EXPECT_EQ(all.back().data, "[DONE]");
  // The same response: its id and its ids' randomness did not change.
  ASSERT_FALSE(before.empty());
  EXPECT_EQ(all[0].data, before[0].data);
  EXPECT_EQ(post("/v1/chat/completions", named("r")).status, 200);
  EXPECT_EQ(generator_->submitted().size(), 1u);
}

TEST_F(Restart, WhatCannotBeResumedIsClosed) {
  begin();
  generator_->hold_at(2);
  Client client = connect();
  client.request("POST", "/v1/chat/completions", chat("Hi", true).dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ == 2; }));
  end();
  EXPECT_EQ(begin(), 0u);
  EXPECT_TRUE(generator_->submitted().empty());
  EXPECT_TRUE(writer_->flush());
  EXPECT_EQ(writer_->stats().open_streams, 0u);
}

// Two streams stand in the middle and one is finished when the process ends.
class OtherModel : public Restart {
 protected:
  void SetUp() override {
    Restart::SetUp();
    says("one two three four five six seven eight");
    begin();
    finished_ = post("/v1/chat/completions", named("whole")).body;
    n_ = static_cast<std::int64_t>(test::tokenizer().encode("one two three").size());
    generator_->hold_at(n_);
    Client a = connect(), b = connect();
    a.request("POST", "/v1/chat/completions", named("a").dump());
    b.request("POST", "/v1/chat/completions", named("b", false).dump());
    const auto drawn = static_cast<std::uint64_t>(script_.size()) + 2 * std::uint64_t(n_);
    ASSERT_TRUE(generator_->wait([&](auto& g) { return g.n_drawn_ == drawn; }));
    ASSERT_NE(a.read_until(" three"), std::string::npos);
    end();
  }
  std::string finished_;
  std::int64_t n_ = 0;
};

TEST_F(OtherModel, EndsAStreamWithAnErrorBehindItsTokens) {
  std::vector<std::string> lines;
  options_.log = [&](const std::string& line) { lines.push_back(line); };
  fingerprint_text_ = fingerprint_text("1", "bbbb");
  EXPECT_EQ(begin(), 0u);
  EXPECT_TRUE(generator_->submitted().empty());
  EXPECT_EQ(lines.size(), 2u);
  const char* sentence = "another model (weights aaaa then, bbbb now)";
  const auto all = sse_events(get("/v1/streams/a").body);
  std::string text;
  for (const SseLine& event : all) {
    const TestJson json = event.json();
    if (json.contains("choices") && !json["choices"].empty()) {
      text += json["choices"][0]["delta"].value("content", "");
    }
  }
  EXPECT_EQ(text, "one two three");
  EXPECT_NE(all.back().data.find(sentence), std::string::npos) << all.back().data;
  EXPECT_TRUE(all.back().json().contains("error"));
  // A client that comes back gets what follows what it had: nothing but the error.
  const auto rest =
      sse_events(get("/v1/streams/a", {{"Last-Event-ID", "a:" + std::to_string(n_)}}).body);
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].data, all.back().data);
  EXPECT_EQ(get("/v1/streams/a?after=999").status, 409);
  // So does the one that wanted it whole, by asking again.
  const Reply again = post("/v1/chat/completions", named("b", false));
  EXPECT_EQ(again.status, 500);
  EXPECT_NE(again.body.find(sentence), std::string::npos) << again.body;
  // What was finished is read, and new requests are answered.
  EXPECT_EQ(data_of(sse_events(get("/v1/streams/whole").body)).size(),
            data_of(sse_events(finished_)).size());
  EXPECT_EQ(post("/v1/chat/completions", named("c")).status, 200);
  EXPECT_EQ(generator_->submitted().size(), 1u);
  // The end is in the journal: the first model does not go on either.
  EXPECT_TRUE(settles());
  end();
  fingerprint_text_ = fingerprint_text("1", "aaaa");
  EXPECT_EQ(begin(), 0u);
}

TEST_F(OtherModel, AnotherBuildGoesOn) {
  fingerprint_text_ = fingerprint_text("2", "aaaa");
  EXPECT_EQ(begin(), 2u);
  EXPECT_EQ(generator_->submitted().size(), 2u);
  EXPECT_TRUE(settles());
}

// Its tokens would be read as other text.
TEST_F(OtherModel, AnotherTokenizerShowsNothing) {
  fingerprint_text_ = fingerprint_text("1", "aaaa", "u");
  EXPECT_EQ(begin(), 0u);
  for (const char* id : {"a", "whole"}) {
    const Reply reply = get(std::string("/v1/streams/") + id);
    EXPECT_EQ(reply.status, 409);
    EXPECT_EQ(TestJson::parse(reply.body)["error"]["code"], "stream_of_another_model");
  }
  EXPECT_EQ(post("/v1/chat/completions", named("c")).status, 200);
}

TEST_F(Restart, FinishedStreamsAreReadFromTheJournal) {
  begin();
  const auto before = sse_events(post("/v1/chat/completions", named("f")).body);
  EXPECT_TRUE(settles());
  end();
  EXPECT_EQ(begin(), 0u);
  const auto after = sse_events(get("/v1/streams/f").body);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i + 2 < after.size(); ++i) EXPECT_EQ(after[i].data, before[i].data);
  EXPECT_EQ(post("/v1/chat/completions", named("f")).status, 200);
  EXPECT_TRUE(generator_->submitted().empty());
}

TEST_F(Restart, TopLogprobsAreReadFromTheJournal) {
  begin();
  TestJson ask = named("l");
  ask["logprobs"] = true;
  ask["top_logprobs"] = 3;
  const auto before = sse_events(post("/v1/chat/completions", ask).body);
  EXPECT_TRUE(settles());
  end();
  EXPECT_EQ(begin(), 0u);
  const auto after = sse_events(get("/v1/streams/l").body);
  ASSERT_EQ(after.size(), before.size());
  for (std::size_t i = 0; i + 2 < after.size(); ++i) EXPECT_EQ(after[i].data, before[i].data);
  EXPECT_EQ(before[1].json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"].size(), 3u);
}

TEST_F(Restart, SeveralPromptsAndChoicesResume) {
  scripts_ = {test::answer_tokens("first answer here"), test::answer_tokens("second")};
  begin();
  TestJson ask = {{"model", "test-model"},
                  {"prompt", {"a", "b"}},
                  {"n", 2},
                  {"max_tokens", 50},
                  {"stream_id", "multi"}};
  generator_->hold_at(2);
  Client client = connect();
  client.request("POST", "/v1/completions", ask.dump());
  ASSERT_TRUE(generator_->wait([](auto& g) { return g.n_drawn_ >= 8; }));
  end();
  EXPECT_EQ(begin(), 1u);
  EXPECT_EQ(generator_->submitted().size(), 2u);
  const TestJson answer = TestJson::parse(post("/v1/completions", ask).body);
  std::vector<std::string> texts;
  for (const auto& choice : answer["choices"]) texts.push_back(choice["text"]);
  EXPECT_EQ(texts, (std::vector<std::string>{"first answer here", "second", "first answer here",
                                             "second"}));
}

}  // namespace
}  // namespace hadal::server
