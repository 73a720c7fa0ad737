#include "server/app.h"

#include <fmt/format.h>

#include <ctime>
#include <thread>

#include "core/digest.h"
#include "core/error.h"
#include "server/api_errors.h"
#include "server/routes.h"

namespace hadal::server {

using protocol::Api;
using protocol::ApiError;

std::string random_base62(std::size_t n) {
  static constexpr std::string_view kDigits =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string out;
  std::vector<std::byte> random(2 * n);
  while (out.size() < n) {
    random_bytes(random);
    for (const std::byte b : random) {
      // 248 is the last multiple of 62 in a byte: no digit is likelier than another.
      const auto value = static_cast<unsigned>(b);
      if (value < 248 && out.size() < n) out += kDigits[value % kDigits.size()];
    }
  }
  return out;
}

App::App(AppOptions options, const KeyRing& keys)
    : options_(std::move(options)),
      generation_(options_.generation),
      keys_(keys),
      metrics_(options_.model_name),
      admission_(options_.admission),
      registry_(options_.registry),
      tasks_(options_.workers),
      started_(std::time(nullptr)) {
  events_.on_admitted = [](const std::shared_ptr<LiveStream>& stream) {
    stream->info().ticket->started();
  };
  events_.on_finished = [this](const std::shared_ptr<LiveStream>& stream) {
    tasks_.post([this, stream] { finished(stream); });
  };
  events_.on_last_reader_left = [this](const std::shared_ptr<LiveStream>& stream) {
    metrics_.disconnects.add();
    if (!stream->info().resumable && !stream->snapshot().finished) stream->cancel();
  };
  events_.on_first_token = [this](double s) { metrics_.time_to_first_token.observe(s); };
  events_.on_tokens = [this](std::size_t n, double between) {
    if (between < 0) return;
    for (std::size_t i = 0; i < n; ++i) {
      metrics_.inter_token_latency.observe(between / static_cast<double>(n));
    }
  };
}

App::~App() {
  stop();
}

void App::stop() {
  tasks_.stop();
  pumps_.stop();
}

std::size_t App::start(Backend backend, std::span<const std::string> unfinished) {
  if (!options_.cache_info.empty()) metrics_.set_cache_info(options_.cache_info);
  generation_.grammars = backend.grammars;
  backend_.emplace(std::move(backend));
  const std::size_t n_resumed = recover(unfinished);
  loaded_.store(true, std::memory_order_release);
  return n_resumed;
}

Backend& App::backend() {
  if (!loaded()) throw overloaded("the model is being loaded; try again in a moment");
  return *backend_;
}

namespace {

// A client's own request id, where it is printable and short.
std::string request_id_of(const HttpRequest& request) {
  constexpr std::size_t kMaxId = 128;
  const std::string_view given = request.header("x-request-id").value_or("");
  bool usable = !given.empty() && given.size() <= kMaxId;
  for (const char c : given) usable = usable && c > 0x20 && c < 0x7f;
  return usable ? std::string(given) : "req_" + random_base62(24);
}

}  // namespace

void App::handle(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  Call call{
      .exchange = exchange, .api = RouteTable::api_of(request.path), .request_id = {}, .id = {}};
  try {
    call.request_id = request_id_of(request);
    metrics_.http_requests.add();
    if (request.method == "OPTIONS" && !options_.cors_origins.empty()) {
      return respond(call, 204, {}, "text/plain",
                     {{"Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"},
                      {"Access-Control-Allow-Headers", "*, Authorization"},
                      {"Access-Control-Max-Age", "600"}});
    }
    RouteTable::Match match = RouteTable::find(request.method, request.path);
    if (match.route == nullptr) {
      if (match.allow.empty()) {
        throw not_found(
            fmt::format("there is nothing at {}; /v1/models, /v1/chat/completions and "
                        "/v1/messages are among what there is",
                        request.path.substr(0, 200)));
      }
      return fail(
          call,
          {.status = 405,
           .message = fmt::format("{} does not take {}; it takes {}", request.path.substr(0, 200),
                                  request.method.substr(0, 20), match.allow)},
          {{"Allow", match.allow}});
    }
    call.id = std::move(match.id);
    call.key = keys_.find(request);
    if (match.route->access == RouteTable::Access::key && call.key == nullptr) throw bad_key();
    if (match.route->where == RouteTable::Where::io_thread) {
      return dispatch(call, match.route->handler);
    }
    tasks_.post([this, call = std::move(call), handler = match.route->handler]() mutable {
      dispatch(call, handler);
    });
  } catch (const protocol::ApiException& e) {
    fail(call, e.error);
  } catch (const std::exception& e) {
    fail(call, {.status = 500, .type = "server_error", .message = e.what()});
  }
}

void App::dispatch(Call& call, Method method) {
  try {
    (this->*method)(call);
  } catch (const Refusal& e) {
    metrics_.refused.add();
    fail(call, e.error, e.headers);
  } catch (const protocol::ApiException& e) {
    fail(call, e.error);
  } catch (const std::exception& e) {
    if (options_.log) options_.log(fmt::format("{}: 500: {}", call.request_id, e.what()));
    fail(call, {.status = 500,
                .type = "server_error",
                .message = fmt::format("the server failed: {}; this is a bug, please report it "
                                       "with request id {}",
                                       e.what(), call.request_id)});
  }
}

void App::fail(Call& call, const ApiError& error, Headers headers) {
  int status = error_status(call.api, error);
  if (options_.deepseek_status_codes && status == 400 && error.param) status = 422;
  metrics_.count_http_error(status);
  if (error.status == 503) headers.emplace_back("Retry-After", draining_ ? "30" : "2");
  if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (options_.log && status != 404) {
    options_.log(fmt::format("{}: {} {}: {}: {}", call.request_id, call.request().method,
                             call.request().path.substr(0, 100), status, error.message));
  }
  respond(call, status, error_body(call.api, error, call.request_id), "application/json",
          std::move(headers));
}

Headers App::common_headers(const Call& call) const {
  Headers headers = {{"X-Request-Id", call.request_id}};
  if (call.api == Api::messages) headers.emplace_back("request-id", call.request_id);
  const auto origin = call.request().header("origin");
  for (const std::string& allowed : options_.cors_origins) {
    if (!origin || (allowed != "*" && allowed != *origin)) continue;
    headers.emplace_back("Access-Control-Allow-Origin", allowed);
    headers.emplace_back("Access-Control-Expose-Headers", "*");
    headers.emplace_back("Vary", "Origin");
    break;
  }
  return headers;
}

void App::respond(Call& call, int status, std::string body, std::string content_type,
                  Headers headers) {
  Headers all = common_headers(call);
  if (!content_type.empty()) all.emplace_back("Content-Type", std::move(content_type));
  all.insert(all.end(), headers.begin(), headers.end());
  call.exchange->respond({.status = status, .headers = std::move(all), .body = std::move(body)});
}

std::optional<HttpResponse> App::check_headers(const HttpRequest& request) const {
  const RouteTable::Match match = RouteTable::find(request.method, request.path);
  if (match.route == nullptr || match.route->access == RouteTable::Access::anyone ||
      keys_.find(request) != nullptr) {
    return std::nullopt;
  }
  HttpResponse response = refusal(401, bad_key().error.message, request.path);
  response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse App::refusal(int status, const std::string& message, const std::string& path) const {
  ApiError error{.status = status, .message = message};
  if (status == 401) error = bad_key().error;
  if (status == 408) error.type = "timeout_error";
  if (status == 413) error.type = "request_too_large";
  if (status == 503) error.type = "overloaded_error";
  const Api api = RouteTable::api_of(path);
  const std::string id = "req_" + random_base62(24);
  return {.status = status,
          .headers = {{"Content-Type", "application/json"}, {"X-Request-Id", id}},
          .body = error_body(api, error, id),
          .close = true};
}

void App::tick() {
  registry_.tick();
  if (!loaded()) return;
  const engine::EngineStatus status = backend_->generator->status();
  constexpr std::size_t kSeconds = 5;
  const std::lock_guard lock(samples_mutex_);
  samples_.push_back({SteadyClock::now(), status.generated_tokens, status.prompt_tokens});
  if (samples_.size() > kSeconds + 1) samples_.erase(samples_.begin());
}

void App::drain() {
  draining_ = true;
}

bool App::wait_drained(std::chrono::milliseconds patience) {
  const auto until = SteadyClock::now() + patience;
  while (registry_.n_unfinished() > 0 && SteadyClock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (registry_.n_unfinished() == 0) return true;
  for (const auto& stream : registry_.unfinished()) {
    if (stream->info().resumable && loaded() && backend_->journal != nullptr) continue;
    stream->cancel(ApiError{.status = 503,
                            .type = "overloaded_error",
                            .message = "the server is shutting down; ask again in a moment"});
  }
  // Cancelling takes a step, and telling the clients a moment.
  const auto grace = SteadyClock::now() + std::chrono::seconds(2);
  const auto others = [this] {
    for (const auto& stream : registry_.unfinished()) {
      if (!stream->info().resumable) return true;
    }
    return false;
  };
  while (others() && SteadyClock::now() < grace) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace hadal::server
