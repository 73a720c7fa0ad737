#include "protocol/openai_parts.h"

#include <algorithm>
#include <cmath>

#include "io/utf8.h"

namespace hadal::protocol {

std::string response_head(std::string_view id_prefix, std::string_view object,
                          const ResponseIdentity& identity) {
  JsonWriter out;
  out.begin_object()
      .member("id", std::string(id_prefix) + identity.id)
      .member("object", object)
      .member("created", identity.created)
      .member("model", identity.model)
      .key("system_fingerprint");
  if (identity.system_fingerprint.empty()) {
    out.null();
  } else {
    out.text(identity.system_fingerprint);
  }
  out.key("choices").begin_array();
  return out.take();
}

void write_usage(JsonWriter& out, const Usage& usage) {
  out.begin_object()
      .member("prompt_tokens", usage.prompt_tokens)
      .member("completion_tokens", usage.completion_tokens)
      .member("total_tokens", usage.prompt_tokens + usage.completion_tokens);
  out.key("prompt_tokens_details").begin_object();
  out.member("cached_tokens", usage.cached_tokens).end_object();
  out.key("completion_tokens_details").begin_object();
  out.member("reasoning_tokens", usage.reasoning_tokens).end_object();
  out.member("prompt_cache_hit_tokens", usage.cached_tokens)
      .member("prompt_cache_miss_tokens", usage.prompt_tokens - usage.cached_tokens)
      .end_object();
}

std::string token_text(std::string_view bytes) {
  io::Utf8Stream utf8;
  const std::string text = utf8.feed(bytes);
  return text + utf8.finish();
}

void write_logprob(JsonWriter& out, double logprob) {
  static constexpr double kNever = -9999.0;
  if (std::isnan(logprob)) {
    out.null();
  } else {
    out.number(std::max(logprob, kNever));
  }
}

namespace {

void write_token(JsonWriter& out, std::string_view bytes, double logprob) {
  out.member("token", token_text(bytes)).key("logprob");
  write_logprob(out, logprob);
  out.key("bytes").begin_array();
  for (const char byte : bytes) out.integer(static_cast<unsigned char>(byte));
  out.end_array();
}

}  // namespace

std::string logprob_entry(const TokenLogprobText& token) {
  JsonWriter out;
  out.begin_object();
  write_token(out, token.bytes, token.logprob);
  out.key("top_logprobs").begin_array();
  for (const TokenLogprobText::Top& top : token.top) {
    out.begin_object();
    write_token(out, top.bytes, top.logprob);
    out.end_object();
  }
  out.end_array().end_object();
  return out.take();
}

const char* openai_finish_reason(AnswerEnd end, bool has_complete_call) {
  if (end == AnswerEnd::length) return "length";
  if (end == AnswerEnd::error) return "insufficient_system_resource";
  return has_complete_call ? "tool_calls" : "stop";
}

ApiError failed_answer(const std::string& detail) {
  ApiError error;
  error.status = 500;
  error.type = "server_error";
  error.message = detail.empty() ? "the answer could not be finished" : detail;
  return error;
}

}  // namespace hadal::protocol
