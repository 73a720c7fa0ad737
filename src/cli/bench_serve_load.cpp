#include "cli/bench_serve_load.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <exception>
#include <fstream>
#include <utility>

#include "cli/interrupt.h"
#include "cli/progress.h"
#include "core/error.h"

namespace hadal::cli {

namespace asio = boost::asio;
using asio::use_awaitable;

namespace {

// Words that agents and manuals use; prompts are drawn from them.
constexpr const char* kWords[] = {
    "the",  "file", "server", "of",    "test",   "returns", "a",     "value", "when",  "line",
    "and",  "open", "read",   "with",  "error",  "list",    "name",  "from",  "token", "is",
    "time", "path", "not",    "found", "result", "set",     "state", "to",    "user",  "water",
    "king", "said", "before", "every", "house",  "number",  "below", "page",  "in",    "new"};
constexpr std::uint32_t kNWords = static_cast<std::uint32_t>(std::size(kWords));

constexpr std::uint32_t kSessionStream = 1, kArrivalStream = 2, kPoolStream = 3, kPrefixStream = 4;
constexpr int kIdlePriority = -1'000'000;
// Of everything spawned: an exception ends run().
constexpr auto kRethrow = [](const std::exception_ptr& error) {
  if (error) std::rethrow_exception(error);
};

constexpr double kReopenSeconds = 1, kWatchSeconds = 0.25;

std::string random_words(Rng& rng, std::int64_t n) {
  std::string text;
  for (std::int64_t i = 0; i < n; ++i) {
    if (i > 0) text += i % 12 == 0 ? ".\n" : " ";
    text += kWords[rng.next_below(kNWords)];
  }
  return text;
}

std::uint64_t session_seed(const ServeLoad& load, std::int64_t index) {
  return load.seed * 1'000'003 + static_cast<std::uint64_t>(index);
}

// The sentence of an error's body in any of the APIs' shapes, and its type.
std::string failure_kind(int status, const std::string& body) {
  const auto json = nlohmann::ordered_json::parse(body, nullptr, false);
  if (json.is_object() && json.contains("error") && json["error"].is_object()) {
    const auto type = json["error"].find("type");
    if (type != json["error"].end() && type->is_string()) {
      return fmt::format("HTTP {} {}", status, type->get<std::string>());
    }
  }
  return fmt::format("HTTP {}", status);
}

std::optional<double> resident_bytes(std::int64_t pid) {
  std::ifstream statm(fmt::format("/proc/{}/statm", pid));
  double total = 0, resident = 0;
  if (!(statm >> total >> resident)) return std::nullopt;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

LoadGenerator::LoadGenerator(const ServeLoad& load)
    : load_(load), endpoint_(parse_url(load.url)), model_(load.model) {}

double LoadGenerator::now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

LoadGenerator::Awaitable<void> LoadGenerator::sleep(double seconds) {
  asio::steady_timer timer(io_);
  timer.expires_after(std::chrono::microseconds(static_cast<std::int64_t>(1e6 * seconds)));
  co_await timer.async_wait(use_awaitable);
}

bool LoadGenerator::may_begin() const {
  return !over_ && next_session_ < load_.sessions &&
         (load_.duration_s <= 0 || now() < load_.duration_s);
}

std::string LoadGenerator::words(Rng& rng, std::int64_t n_tokens) const {
  return random_words(rng, std::max<std::int64_t>(
                               1, std::llround(static_cast<double>(n_tokens) / tokens_per_word_)));
}

LoadGenerator::Awaitable<void> LoadGenerator::prepare() {
  HttpConnection connection(io_, endpoint_, load_.api_key);
  if (model_.empty()) {
    HttpCall models{.method = "GET", .path = "/v1/models", .body = {}};
    const HttpAnswer answer = co_await connection.call(models);
    const Json json = Json::parse(answer.body, nullptr, false);
    if (answer.status != 200 || !json.is_object() || !json.contains("data") ||
        json["data"].empty()) {
      throw RequestFailure("GET /v1/models: " + failure_kind(answer.status, answer.body));
    }
    model_ = json["data"][0]["id"].get<std::string>();
  }
  constexpr std::int64_t kSampleWords = 2000;
  Rng rng(load_.seed, kPoolStream);
  const std::string sample = random_words(rng, kSampleWords);
  HttpCall tokenize{
      .method = "POST",
      .path = "/tokenize",
      .body = Json({{"model", model_}, {"prompt", sample}, {"content", sample}}).dump()};
  const HttpAnswer answer = co_await connection.call(tokenize);
  const Json json = Json::parse(answer.body, nullptr, false);
  if (answer.status != 200 || !json.is_object() || !json.contains("tokens")) {
    throw RequestFailure("POST /tokenize: " + failure_kind(answer.status, answer.body));
  }
  token_pool_ = json["tokens"].get<std::vector<std::int64_t>>();
  if (token_pool_.size() < 2) throw RequestFailure("POST /tokenize: no tokens in the answer");
  // The first may be a begin-of-text mark.
  token_pool_.erase(token_pool_.begin());
  tokens_per_word_ = static_cast<double>(token_pool_.size()) / kSampleWords;
  Rng prefix_rng(load_.seed, kPrefixStream);
  system_prompt_ = "You look things up with tools.\n" + words(prefix_rng, load_.prefix_tokens);
}

LoadGenerator::Json LoadGenerator::agent_tools() const {
  return Json::parse(R"([{"type": "function", "function": {"name": "look_up",
    "description": "Find what is known about a word.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}},
                   "required": ["word"]}}}])");
}

void LoadGenerator::note(const std::string& data, RequestRecord& record, Answer& answer) {
  if (data == "[DONE]") return;
  const Json json = Json::parse(data, nullptr, false);
  if (!json.is_object()) {
    record.failure = "an event that is no JSON";
    return;
  }
  if (json.contains("error")) {
    record.failure = "error in the stream: " + json["error"].value("type", "unknown");
    return;
  }
  const double t = now();
  if (record.first_event < 0) record.first_event = t;
  bool has_text = false;
  if (json.contains("choices")) {
    for (const Json& choice : json["choices"]) {
      if (const std::string text = choice.value("text", std::string()); !text.empty()) {
        has_text = true;
      }
      if (!choice.contains("delta")) continue;
      const Json& delta = choice["delta"];
      const auto take = [&](const char* member, std::string& to) {
        if (!delta.contains(member) || !delta[member].is_string()) return;
        const auto& text = delta[member].get_ref<const std::string&>();
        has_text |= !text.empty();
        to += text;
      };
      take("content", answer.content);
      take("reasoning_content", answer.reasoning);
      if (!delta.contains("tool_calls")) continue;
      has_text = true;
      for (const Json& fragment : delta["tool_calls"]) {
        const auto index = fragment.value("index", std::size_t{0});
        while (answer.tool_calls.size() <= index) {
          answer.tool_calls.push_back(
              {{"id", ""}, {"type", "function"}, {"function", {{"name", ""}, {"arguments", ""}}}});
        }
        Json& call = answer.tool_calls[index];
        if (fragment.contains("id")) call["id"] = fragment["id"];
        if (!fragment.contains("function")) continue;
        const Json& function = fragment["function"];
        if (function.contains("name")) call["function"]["name"] = function["name"];
        call["function"]["arguments"] = call["function"]["arguments"].get<std::string>() +
                                        function.value("arguments", std::string());
      }
    }
  }
  if (has_text) {
    if (record.first_token < 0) record.first_token = t;
    record.last_token = t;
    ++n_tokens_;
  }
  if (json.contains("usage") && json["usage"].is_object()) {
    const Json& usage = json["usage"];
    record.prompt_tokens = usage.value("prompt_tokens", std::int64_t{0});
    record.completion_tokens = usage.value("completion_tokens", std::int64_t{0});
    if (usage.contains("prompt_tokens_details")) {
      record.cached_tokens = usage["prompt_tokens_details"].value("cached_tokens", std::int64_t{0});
    }
  }
}

// One streamed request; true when its answer is whole.
LoadGenerator::Awaitable<bool> LoadGenerator::stream(HttpConnection& connection, std::string path,
                                                     Json body, RequestRecord& record,
                                                     Answer& answer) {
  record.begin = now();
  bool done = false;
  SseReader reader([&](const std::string& data) {
    done |= data == "[DONE]";
    note(data, record, answer);
  });
  HttpCall call{.method = "POST",
                .path = std::move(path),
                .body = body.dump(),
                .timeout_s = load_.timeout_s,
                .on_bytes = [&](std::string_view bytes) { reader.feed(bytes); }};
  try {
    const HttpAnswer result = co_await connection.call(call);
    if (result.status != 200) {
      record.failure = failure_kind(result.status, result.body);
    } else if (!done && record.failure.empty()) {
      record.failure = "the stream ended early";
    }
  } catch (const RequestFailure& failure) {
    record.failure = failure.what();
  } catch (const Json::exception&) {
    record.failure = "an event of another form";
    connection.close();
  }
  record.end = now();
  ++n_done_;
  if (!record.failure.empty()) ++n_failed_;
  record.called = !answer.tool_calls.empty();
  records_.requests.push_back(record);
  co_return record.failure.empty();
}

LoadGenerator::Awaitable<void> LoadGenerator::random_session(std::int64_t index,
                                                             HttpConnection& connection) {
  Rng rng(session_seed(load_, index), kSessionStream);
  Json prompt = Json::array();
  for (std::int64_t i = 0; i < load_.prompt_tokens; ++i) {
    prompt.push_back(token_pool_[rng.next_below(static_cast<std::uint32_t>(token_pool_.size()))]);
  }
  RequestRecord record{.session = index};
  Answer answer;
  Json body = {{"model", model_},
               {"prompt", std::move(prompt)},
               {"max_tokens", load_.max_tokens},
               {"ignore_eos", true},
               {"temperature", load_.temperature},
               {"seed", session_seed(load_, index)},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  (void)co_await stream(connection, "/v1/completions", std::move(body), record, answer);
}

LoadGenerator::Awaitable<void> LoadGenerator::agent_session(std::int64_t index,
                                                            HttpConnection& connection) {
  Rng rng(session_seed(load_, index), kSessionStream);
  Json messages = Json::array({{{"role", "system"}, {"content", system_prompt_}},
                               {{"role", "user"}, {"content", words(rng, load_.prompt_tokens)}}});
  const Json tools = agent_tools();
  for (std::int64_t round = 0; round < load_.rounds; ++round) {
    RequestRecord record{.session = index, .round = round};
    Answer answer;
    Json body = {{"model", model_},
                 {"messages", messages},
                 {"tools", tools},
                 {"tool_choice", "required"},
                 {"max_tokens", load_.max_tokens},
                 {"temperature", load_.temperature},
                 {"seed", session_seed(load_, index) + static_cast<std::uint64_t>(round) * 7919},
                 {"thinking", {{"type", load_.thinking ? "enabled" : "disabled"}}},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (!co_await stream(connection, "/v1/chat/completions", std::move(body), record, answer)) {
      co_return;
    }
    // A call that max_tokens cut off is none: its arguments are no JSON. The loop then goes on with
    // a question, as an agent's user would.
    std::erase_if(answer.tool_calls.get_ref<Json::array_t&>(), [](const Json& call) {
      return !Json::accept(call["function"]["arguments"].get<std::string>());
    });
    Json turn = {{"role", "assistant"}, {"content", answer.content}};
    if (!answer.reasoning.empty()) turn["reasoning_content"] = answer.reasoning;
    if (!answer.tool_calls.empty()) turn["tool_calls"] = answer.tool_calls;
    messages.push_back(std::move(turn));
    for (const Json& call : answer.tool_calls) {
      messages.push_back({{"role", "tool"},
                          {"tool_call_id", call["id"]},
                          {"content", words(rng, load_.result_tokens)}});
    }
    if (answer.tool_calls.empty()) {
      messages.push_back({{"role", "user"}, {"content", words(rng, load_.result_tokens)}});
    }
  }
}

LoadGenerator::Awaitable<void> LoadGenerator::session(std::int64_t index,
                                                      HttpConnection& connection) {
  ++running_sessions_;
  if (load_.trace == ServeLoad::Trace::random) {
    co_await random_session(index, connection);
  } else {
    co_await agent_session(index, connection);
  }
  --running_sessions_;
}

LoadGenerator::Awaitable<void> LoadGenerator::worker() {
  HttpConnection connection(io_, endpoint_, load_.api_key);
  while (may_begin()) {
    const std::int64_t index = next_session_++;
    co_await session(index, connection);
  }
  all_begun_ = true;
  session_over();
}

LoadGenerator::Awaitable<void> LoadGenerator::arrived(std::int64_t index) {
  HttpConnection connection(io_, endpoint_, load_.api_key);
  co_await session(index, connection);
  session_over();
}

LoadGenerator::Awaitable<void> LoadGenerator::arrivals() {
  Rng rng(load_.seed, kArrivalStream);
  double at = 0;
  while (may_begin()) {
    asio::co_spawn(io_, arrived(next_session_++), kRethrow);
    // By the clock of the process, so that a late wake-up delays one arrival and not all after it.
    at += -std::log(static_cast<double>(rng.next_uniform())) / *load_.rate;
    if (const double wait = at - now(); wait > 0) co_await sleep(wait);
  }
  all_begun_ = true;
  session_over();
}

void LoadGenerator::session_over() {
  if (!all_begun_ || running_sessions_ > 0) return;
  over_ = true;
  io_.stop();  // what only accompanies the load ends with it
}

LoadGenerator::Awaitable<void> LoadGenerator::idle_stream(std::int64_t index) {
  HttpConnection connection(io_, endpoint_, load_.api_key);
  // Not all at once: a burst of connections is another test.
  co_await sleep(0.001 * static_cast<double>(index));
  while (!over_) {
    ++records_.idle.opened;
    records_.idle.most_open = std::max(records_.idle.most_open, ++open_idle_);
    std::string failure;
    std::int64_t keep_alives = 0;
    SseReader reader([](const std::string&) {});
    HttpCall call{.method = "POST",
                  .path = "/v1/completions",
                  .body = Json({{"model", model_},
                                {"prompt", {token_pool_.front()}},
                                {"max_tokens", 1},
                                {"priority", kIdlePriority},
                                {"stream", true}})
                              .dump(),
                  .timeout_s = load_.timeout_s,
                  .on_bytes = [&](std::string_view bytes) {
                    reader.feed(bytes);
                    records_.idle.keep_alives += reader.n_comments() - keep_alives;
                    keep_alives = reader.n_comments();
                  }};
    try {
      const HttpAnswer answer = co_await connection.call(call);
      if (answer.status != 200) failure = failure_kind(answer.status, answer.body);
    } catch (const RequestFailure& error) {
      failure = error.what();
    }
    --open_idle_;
    if (!failure.empty()) {
      ++records_.idle.failed;
      ++records_.idle_failures[failure];
    }
    // Its turn came: a gap in the load was long enough. It waits again.
    co_await sleep(kReopenSeconds);
  }
}

LoadGenerator::Awaitable<void> LoadGenerator::probe_health() {
  HttpConnection connection(io_, endpoint_, {});
  while (!over_) {
    const auto begin = std::chrono::steady_clock::now();
    HttpCall call{.method = "GET", .path = "/health", .body = {}};
    try {
      const HttpAnswer answer = co_await connection.call(call);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (answer.status == 200) {
        if (now() >= load_.warm_up_s) records_.health_seconds.push_back(taken.count());
      } else {
        ++records_.health_failures;
      }
    } catch (const RequestFailure&) {
      ++records_.health_failures;
    }
    co_await sleep(1e-3 * static_cast<double>(load_.health_ms));
  }
}

void LoadGenerator::show_progress() {
  const double t = now();
  if (t - shown_at_ < 1) return;
  const double rate = static_cast<double>(n_tokens_ - shown_tokens_) / (t - shown_at_);
  shown_at_ = t;
  shown_tokens_ = n_tokens_;
  if (::isatty(STDERR_FILENO) != 1) return;
  showing_ = true;
  fmt::print(stderr,
             "\r\x1b[K{}: {} sessions running, {} requests done, {} failed, {:.0f} events/s",
             format_seconds(t), running_sessions_, n_done_, n_failed_, rate);
  std::fflush(stderr);
}

LoadGenerator::Awaitable<void> LoadGenerator::watch() {
  double sampled_at = -1;
  while (!over_) {
    if (InterruptGuard::flag()) {
      records_.interrupted = true;
      over_ = true;
      io_.stop();
      co_return;
    }
    show_progress();
    if (load_.pid && now() - sampled_at >= 1) {
      sampled_at = now();
      if (const auto bytes = resident_bytes(*load_.pid)) {
        records_.memory.push_back({sampled_at, *bytes});
      }
    }
    co_await sleep(kWatchSeconds);
  }
}

ServeRecords LoadGenerator::run() {
  std::exception_ptr failure;
  asio::co_spawn(io_, prepare(), [&](std::exception_ptr error) { failure = std::move(error); });
  io_.run();
  if (failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      throw Error(ErrorCode::io, fmt::format("no load can be put on {}: {}. Is it a hadal server, "
                                             "and is the key right?",
                                             load_.url, error.what()));
    }
  }
  io_.restart();
  begin_ = std::chrono::steady_clock::now();
  const InterruptGuard guard;
  asio::co_spawn(io_, watch(), kRethrow);
  if (load_.health_ms > 0) asio::co_spawn(io_, probe_health(), kRethrow);
  for (std::int64_t i = 0; i < load_.idle; ++i) {
    asio::co_spawn(io_, idle_stream(i), kRethrow);
  }
  if (load_.rate) {
    asio::co_spawn(io_, arrivals(), kRethrow);
  } else {
    for (std::int64_t i = 0; i < std::min(load_.concurrency, load_.sessions); ++i) {
      asio::co_spawn(io_, worker(), kRethrow);
    }
  }
  io_.run();
  if (showing_) fmt::print(stderr, "\r\x1b[K");
  double first = now(), last = 0;
  for (const RequestRecord& r : records_.requests) {
    if (r.begin < load_.warm_up_s) continue;
    first = std::min(first, r.begin);
    last = std::max(last, r.end);
  }
  records_.seconds = std::max(0.0, last - first);
  return std::move(records_);
}

}  // namespace hadal::cli
