// How the server is: for load balancers, dashboards, the status page and its own web pages.
#include <fmt/format.h>

#include <chrono>

#include "protocol/api_json.h"
#include "server/app.h"
#include "server/web_files.h"

namespace hadal::server {

using protocol::JsonWriter;

namespace {

constexpr double kStuckSeconds = 5;

std::string state_json(const char* status, const std::string& detail) {
  JsonWriter out;
  out.begin_object().member("status", status).member("detail", detail).end_object();
  return out.take();
}

// Seconds with a few digits.
double rounded(double v) {
  return static_cast<double>(static_cast<std::int64_t>(v * 1000)) / 1000;
}

}  // namespace

void App::health(Call& call) {
  if (loaded()) {
    const double still = backend_->generator->status().seconds_since_step;
    if (still > kStuckSeconds) {
      return respond(call, 503,
                     state_json("stuck", fmt::format("the engine has work and has made no step for "
                                                     "{:.1f} s",
                                                     still)));
    }
  }
  respond(call, 200, state_json("ok", loaded() ? "" : "the model is being loaded"));
}

void App::ready(Call& call) {
  if (!loaded()) return respond(call, 503, state_json("loading", "the model is being loaded"));
  if (draining_) return respond(call, 503, state_json("draining", "the server is shutting down"));
  respond(call, 200, state_json("ready", ""));
}

void App::version(Call& call) {
  JsonWriter out;
  out.begin_object().member("name", "hadal").member("version", options_.version);
  if (loaded()) {
    out.member("model", backend_->model.id);
    out.member("system_fingerprint", backend_->model.system_fingerprint);
  }
  out.end_object();
  respond(call, 200, out.take());
}

void App::metrics_text(Call& call) {
  if (loaded()) {
    metrics_.update(backend_->generator->status());
    if (backend_->journal != nullptr) {
      metrics_.wal_lag.set(static_cast<double>(backend_->journal->stats().pending_tokens));
    }
    if (backend_->memory != nullptr) metrics_.turn_memory_hits.set(backend_->memory->stats().hits);
  }
  respond(call, 200, metrics_.text(), "text/plain; version=0.0.4; charset=utf-8");
}

namespace {

void write_request(JsonWriter& out, const LiveStream& stream) {
  const StreamInfo& info = stream.info();
  const LiveStream::Snapshot s = stream.snapshot();
  const auto since = [](SteadyClock::time_point then) {
    return std::chrono::duration<double>(SteadyClock::now() - then).count();
  };
  const char* state = !s.prompted        ? (s.prefill_done > 0 ? "prefilling" : "waiting")
                      : s.suspended      ? "suspended"
                      : s.n_readers == 0 ? "detached"
                                         : "decoding";
  std::int64_t n_prompt = 0;
  for (const auto& prompt : info.plan->prompts)
    n_prompt += static_cast<std::int64_t>(prompt.size());
  double rate = 0;
  if (s.times.first_token && s.times.last_token > s.times.first_token) {
    const std::chrono::duration<double> took = *s.times.last_token - *s.times.first_token;
    rate = static_cast<double>(s.n_tokens - 1) / took.count();
  }
  out.begin_object().member("stream", info.id);
  out.member("api", to_string(info.plan->request.api)).member("state", state);
  out.member("key", info.key_name).member("user_id", info.plan->request.user_id);
  out.member("model", info.plan->request.model);
  out.key("age_s").number(rounded(since(s.times.arrival)));
  out.member("prompt_tokens", n_prompt).member("cached_tokens", s.prompt.cached_tokens);
  out.member("prefill_done", s.prefill_done).member("generated_tokens", s.n_tokens);
  out.key("tokens_per_second").number(rounded(rate));
  out.member("choices", static_cast<std::int64_t>(info.plan->n_choices));
  out.member("max_tokens", info.max_tokens).member("readers", s.n_readers);
  out.key("resumable").boolean(info.resumable).key("recovered").boolean(info.recovered);
  out.end_object();
}

void count(JsonWriter& out, const char* name, std::uint64_t n) {
  out.member(name, static_cast<std::int64_t>(n));
}

}  // namespace

// The shape is docs/serving/status_json.md's.
void App::status_json(Call& call) {
  if (!loaded()) return respond(call, 503, R"({"state": "loading"})");
  const Backend& there = *backend_;
  const engine::EngineStatus s = there.generator->status();
  double generated_rate = 0, prompt_rate = 0;
  {
    const std::lock_guard lock(samples_mutex_);
    if (samples_.size() > 1) {
      const Sample &a = samples_.front(), &b = samples_.back();
      const double seconds = std::chrono::duration<double>(b.at - a.at).count();
      generated_rate = static_cast<double>(b.generated - a.generated) / seconds;
      prompt_rate = static_cast<double>(b.prompt - a.prompt) / seconds;
    }
  }
  JsonWriter out;
  out.begin_object().member("state", draining_ ? "draining" : "ready");
  out.member("model", there.model.id).member("version", options_.version);
  out.member("started", started_);
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  out.key("now").number(rounded(now));
  out.key("uptime_s")
      .number(rounded(std::chrono::duration<double>(SteadyClock::now() - started_at_).count()));

  out.key("engine").begin_object();
  out.member("running", s.n_running).member("prefilling", s.n_prefilling);
  out.member("waiting", s.n_waiting).member("preempted", s.n_preempted);
  out.member("max_running", there.max_running).member("max_step_tokens", there.max_step_tokens);
  out.member("context_length", there.model.context_length);
  count(out, "steps_total", s.steps);
  out.key("step_seconds_total").number(rounded(s.step_seconds));
  out.key("forward_seconds_total").number(rounded(s.forward_seconds));
  out.key("seconds_since_step").number(rounded(s.seconds_since_step));
  count(out, "prompt_tokens_total", s.prompt_tokens);
  count(out, "cached_tokens_total", s.cached_tokens);
  count(out, "replayed_tokens_total", s.replayed_tokens);
  count(out, "generated_tokens_total", s.generated_tokens);
  count(out, "drafted_tokens_total", s.drafted_tokens);
  count(out, "accepted_drafts_total", s.accepted_drafts);
  count(out, "preemptions_total", s.preemptions);
  out.key("tokens_per_second").number(rounded(generated_rate));
  out.key("prefill_tokens_per_second").number(rounded(prompt_rate));
  out.end_object();

  out.key("cache").begin_object();
  out.member("pages_total", s.pages_total).member("pages_used", s.pages_used);
  out.member("pages_cached", s.pages_cached).member("pages_pinned", s.pages_pinned);
  count(out, "page_bytes", s.page_bytes);
  count(out, "state_bytes", s.state_bytes);
  count(out, "snapshot_bytes", s.snapshot_bytes);
  count(out, "pinned_bytes", s.pinned_bytes);
  count(out, "prefix_query_tokens_total", s.prefix_queries);
  count(out, "prefix_hit_tokens_total", s.prefix_hits);
  out.key("prefix_hit_rate")
      .number(s.prefix_queries > 0 ? rounded(static_cast<double>(s.prefix_hits) /
                                             static_cast<double>(s.prefix_queries))
                                   : 0);
  out.member("disk_bytes", static_cast<std::int64_t>(metrics_.kv_disk_bytes.value()));
  out.end_object();

  out.key("journal");
  if (there.journal == nullptr) {
    out.null();
  } else {
    const journal::WriterStats stats = there.journal->stats();
    out.begin_object().member("policy", options_.journal_policy);
    count(out, "lag_tokens", stats.pending_tokens);
    count(out, "bytes", stats.bytes);
    out.key("failed").boolean(!there.journal->healthy()).end_object();
  }

  out.key("http").begin_object();
  out.member("connections", static_cast<std::int64_t>(metrics_.connections.value()));
  count(out, "requests_total", metrics_.http_requests.value());
  count(out, "disconnects_total", metrics_.disconnects.value());
  out.key("errors_total").begin_object();
  for (const auto& [status, n] : metrics_.http_errors()) {
    count(out, std::to_string(status).c_str(), n);
  }
  out.end_object().end_object();

  out.key("requests").begin_array();
  constexpr std::size_t kMaxListed = 200;
  std::size_t n = 0;
  for (const auto& stream : registry_.unfinished()) {
    if (n++ == kMaxListed) break;
    write_request(out, *stream);
  }
  out.end_array().end_object();
  respond(call, 200, out.take(), "application/json", {{"Cache-Control", "no-store"}});
}

void App::web_file(Call& call) {
  const WebFile* file = find_web_file(call.request().path);
  Headers headers = {
      {"ETag", std::string(file->etag)},
      {"Cache-Control", "no-cache"},
      {"Content-Security-Policy",
       "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
       "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"}};
  if (call.request().header("if-none-match") == file->etag) {
    return respond(call, 304, {}, "", std::move(headers));
  }
  respond(call, 200, std::string(file->bytes), std::string(file->content_type), std::move(headers));
}

}  // namespace hadal::server
