#include "protocol/api.h"

#include <fmt/format.h>

#include "io/utf8.h"
#include "protocol/api_common.h"
#include "protocol/api_json.h"

namespace hadal::protocol {
namespace {

constexpr std::size_t kMaxParseMessage =
    256;  // bytes; a parser may quote the whole of a long string

[[noreturn]] void refuse_body(const std::string& why) {
  refuse_field("", why);
}

// Where brackets nest deeper than is read. Strings are skipped; whether all this is JSON is seen
// later.
std::optional<std::size_t> find_too_deep(std::string_view body) {
  std::size_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxBodyDepth) return i;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return std::nullopt;
}

void write_extra(JsonWriter& out, const ApiError& error) {
  for (const auto& [name, value] : error.extra) out.key(name).raw(value.dump());
}

void write_optional(JsonWriter& out, std::string_view name,
                    const std::optional<std::string>& value) {
  out.key(name);
  if (value) {
    out.text(*value);
  } else {
    out.null();
  }
}

// The members inside OpenAI's error object.
void write_openai_error(JsonWriter& out, const ApiError& error) {
  out.begin_object().member("message", error.message).member("type", error.type);
  write_optional(out, "param", error.param);
  write_optional(out, "code", error.code);
  write_extra(out, error);
  out.end_object();
}

// Anthropic's word for an error of ours. Source: Anthropic API documentation, "Errors".
std::string_view anthropic_type(const ApiError& error) {
  static constexpr std::string_view kSame[] = {
      "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
      "request_too_large",     "rate_limit_error",     "timeout_error",    "overloaded_error"};
  for (const std::string_view type : kSame) {
    if (type == error.type) return type;
  }
  return error.status >= 500 ? "api_error" : "invalid_request_error";
}

}  // namespace

const char* to_string(Api api) {
  switch (api) {
    case Api::chat_completions:
      return "chat_completions";
    case Api::completions:
      return "completions";
    case Api::responses:
      return "responses";
    case Api::messages:
      return "messages";
  }
  return "?";
}

Json parse_body(std::string_view body) {
  if (const auto at = io::find_invalid_utf8(body)) {
    refuse_body(fmt::format("is not valid UTF-8 from byte {} on", *at));
  }
  if (const auto at = find_too_deep(body)) {
    refuse_body(fmt::format("arrays and objects nest deeper than {} levels at byte {}",
                            kMaxBodyDepth, *at));
  }
  try {
    return Json::parse(body);
  } catch (const Error& e) {
    // The parser quotes what it read last, and stops inside a character.
    io::Utf8Stream utf8;
    const std::string_view what = e.what();
    std::string why = utf8.feed(what.substr(0, kMaxParseMessage));
    why += what.size() > kMaxParseMessage ? "..." : utf8.finish();
    refuse_body(why);
  }
}

std::string error_body(Api api, const ApiError& error, std::string_view request_id) {
  JsonWriter out;
  out.begin_object();
  if (api == Api::messages) {
    out.member("type", "error").key("error").begin_object();
    out.member("type", anthropic_type(error)).member("message", error.message);
    write_extra(out, error);
    out.end_object().member("request_id", request_id);
  } else {
    out.key("error");
    write_openai_error(out, error);
  }
  out.end_object();
  return out.take();
}

int error_status(Api api, const ApiError& error) {
  if (api != Api::messages) return error.status;
  if (error.type == "overloaded_error") return 529;
  if (error.type == "timeout_error") return 504;
  return error.status;
}

SseEvent stream_error(Api api, const ApiError& error, std::string_view request_id) {
  if (api == Api::messages) return {"error", error_body(api, error, request_id)};
  if (api != Api::responses) return {"", error_body(api, error, request_id)};
  JsonWriter out;
  out.begin_object().member("type", "error");
  write_optional(out, "code", error.code ? error.code : error.type);
  out.member("message", error.message);
  write_optional(out, "param", error.param);
  write_extra(out, error);
  out.end_object();
  return {"error", out.take()};
}

std::string tool_call_id(Api api, const ResponseIdentity& identity, std::int32_t choice,
                         std::size_t index) {
  return derived_id(api == Api::messages ? "toolu_" : "call_", identity, "tool_call", choice,
                    index);
}

}  // namespace hadal::protocol
