#include "server/routes.h"

#include "server/web_files.h"

namespace hadal::server {

namespace {

constexpr std::string_view kId = "{id}";

bool matches(std::string_view pattern, std::string_view path, std::string& id) {
  const std::size_t at = pattern.find(kId);
  if (at == std::string_view::npos) return pattern == path;
  const std::string_view before = pattern.substr(0, at), after = pattern.substr(at + kId.size());
  if (path.size() <= before.size() + after.size()) return false;
  if (!path.starts_with(before) || !path.ends_with(after)) return false;
  const std::string_view middle =
      path.substr(before.size(), path.size() - before.size() - after.size());
  // A model's name may have slashes; other ids have none.
  if (middle.find('/') != std::string_view::npos && !pattern.starts_with("/v1/models/")) {
    return false;
  }
  id = std::string(middle);
  return true;
}

// DeepSeek serves everything under /beta, too.
std::string_view without_beta(std::string_view path) {
  constexpr std::string_view kBeta = "/beta";
  if (path.starts_with("/beta/")) path.remove_prefix(kBeta.size());
  return path;
}

}  // namespace

RouteTable::Match RouteTable::find(std::string_view method, std::string_view path) {
  using enum Where;
  using enum Access;
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/chat/completions", &App::chat_completions, worker, key},
      {"POST", "/chat/completions", &App::chat_completions, worker, key},
      {"POST", "/v1/completions", &App::completions, worker, key},
      {"POST", "/completions", &App::completions, worker, key},
      {"POST", "/v1/responses", &App::responses, worker, key},
      {"POST", "/responses", &App::responses, worker, key},
      {"POST", "/v1/messages", &App::messages, worker, key},
      {"POST", "/anthropic/v1/messages", &App::messages, worker, key},
      {"POST", "/v1/messages/count_tokens", &App::count_tokens, worker, key},
      {"POST", "/anthropic/v1/messages/count_tokens", &App::count_tokens, worker, key},
      {"GET", "/v1/models", &App::list_models, worker, key},
      {"GET", "/models", &App::list_models, worker, key},
      {"GET", "/v1/models/{id}", &App::get_model, worker, key},
      {"GET", "/v1/streams/{id}", &App::get_stream, worker, key},
      {"DELETE", "/v1/streams/{id}", &App::delete_stream, worker, key},
      {"GET", "/v1/responses/{id}", &App::get_response, worker, key},
      {"POST", "/v1/responses/{id}/cancel", &App::cancel_response, worker, key},
      {"POST", "/tokenize", &App::tokenize, worker, key},
      {"POST", "/detokenize", &App::detokenize, worker, key},
      {"POST", "/v1/chat/render", &App::render_chat, worker, key},
      {"GET", "/status.json", &App::status_json, worker, key},
      {"GET", "/health", &App::health, io_thread, anyone},
      {"GET", "/ready", &App::ready, io_thread, anyone},
      {"GET", "/version", &App::version, io_thread, anyone},
      {"GET", "/metrics", &App::metrics_text, io_thread, anyone},
  };
  static constexpr Route kWebFile = {"GET", "/", &App::web_file, io_thread, anyone};

  Match match;
  if (method == "HEAD") method = "GET";
  const std::string_view plain = without_beta(path);
  for (const Route& route : kRoutes) {
    std::string id;
    if (!matches(route.pattern, plain, id)) continue;
    if (route.method == method) return {&route, std::move(id), {}};
    if (!match.allow.empty()) match.allow += ", ";
    match.allow += route.method;
  }
  if (match.allow.empty() && find_web_file(path) != nullptr) {
    if (method == "GET") return {&kWebFile, {}, {}};
    match.allow = "GET";
  }
  return match;
}

protocol::Api RouteTable::api_of(std::string_view path) {
  using protocol::Api;
  path = without_beta(path);
  if (path.starts_with("/v1/messages") || path.starts_with("/anthropic/")) return Api::messages;
  if (path.starts_with("/v1/responses") || path == "/responses") return Api::responses;
  if (path == "/v1/completions" || path == "/completions") return Api::completions;
  return Api::chat_completions;
}

}  // namespace hadal::server
