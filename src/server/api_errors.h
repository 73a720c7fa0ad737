// The refusals of serving.md §4.6, each in one place.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <utility>

#include "protocol/api.h"

namespace hadal::server {

[[nodiscard]] inline protocol::ApiException invalid_request(
    std::string message, std::optional<std::string> param = std::nullopt,
    std::optional<std::string> code = std::nullopt) {
  return protocol::ApiException(
      {.message = std::move(message), .param = std::move(param), .code = std::move(code)});
}

[[nodiscard]] inline protocol::ApiException context_too_long(std::int64_t n_prompt,
                                                             std::int64_t n_ctx) {
  using protocol::Json;
  protocol::ApiError error{
      .message = fmt::format("the prompt has {} tokens, and the context ends at {}; at least one "
                             "token must be left for the answer",
                             n_prompt, n_ctx),
      .code = "context_length_exceeded"};
  error.extra = {{"n_prompt_tokens", Json(Json::Value(Json::Integer{std::to_string(n_prompt)}))},
                 {"n_ctx", Json(Json::Value(Json::Integer{std::to_string(n_ctx)}))}};
  return protocol::ApiException(std::move(error));
}

[[nodiscard]] inline protocol::ApiException bad_key() {
  return protocol::ApiException(
      {.status = 401,
       .type = "authentication_error",
       .message = "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\" or "
                  "as \"x-api-key: KEY\"",
       .code = "invalid_api_key"});
}

[[nodiscard]] inline protocol::ApiException forbidden(std::string message) {
  return protocol::ApiException(
      {.status = 403, .type = "permission_error", .message = std::move(message)});
}

[[nodiscard]] inline protocol::ApiException not_found(std::string message,
                                                      std::optional<std::string> code = {}) {
  return protocol::ApiException({.status = 404,
                                 .type = "not_found_error",
                                 .message = std::move(message),
                                 .code = std::move(code)});
}

[[nodiscard]] inline protocol::ApiException conflict(std::string message, std::string code) {
  return protocol::ApiException({.status = 409,
                                 .type = "conflict_error",
                                 .message = std::move(message),
                                 .code = std::move(code)});
}

[[nodiscard]] inline protocol::ApiException rate_limited(std::string message) {
  return protocol::ApiException(
      {.status = 429, .type = "rate_limit_error", .message = std::move(message)});
}

[[nodiscard]] inline protocol::ApiException overloaded(std::string message) {
  return protocol::ApiException(
      {.status = 503, .type = "overloaded_error", .message = std::move(message)});
}

}  // namespace hadal::server
