// The HTTP APIs in neutral form: what a request asks for, and how an answer is written. Pure
// functions of JSON and events; no sockets, no engine, no tokens' meaning.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/token.h"
#include "protocol/chat_template.h"
#include "protocol/dsml_event.h"
#include "protocol/message.h"

namespace hadal::protocol {

enum class Api : std::uint8_t { chat_completions, completions, responses, messages };
[[nodiscard]] const char* to_string(Api api);

// A request that cannot be served, as its client will read it. `status` is the HTTP status of the
// OpenAI-shaped APIs; Anthropic's differ where its documentation says so (overload is 529).
// Source: serving.md §4.6.
struct ApiError {
  int status = 400;
  std::string type = "invalid_request_error";
  std::string message = {};
  std::optional<std::string> param = {};
  std::optional<std::string> code = {};
  std::vector<std::pair<std::string, Json>> extra = {};  // further members: n_prompt_tokens, ...
};
// Thrown by parsers; only the request layer catches it.
class ApiException : public std::runtime_error {
 public:
  explicit ApiException(ApiError e) : std::runtime_error(e.message), error(std::move(e)) {}
  ApiError error;
};
// The body that `api` sends for it; `extra` stands inside the error object.
[[nodiscard]] std::string error_body(Api api, const ApiError& error, std::string_view request_id);
[[nodiscard]] int error_status(Api api, const ApiError& error);

struct SamplingOptions {  // unset: the model's default
  std::optional<double> temperature, top_p, min_p, presence_penalty, frequency_penalty,
      repetition_penalty;
  std::optional<std::int64_t> top_k;
  std::map<TokenId, double> logit_bias;
  std::optional<std::uint64_t> seed;
};

enum class ToolMode : std::uint8_t { none, automatic, required };
struct ToolPolicy {
  ToolMode mode = ToolMode::none;    // none if and only if the request's tools are empty
  std::vector<std::string> allowed;  // names the answer may call; empty: all declared
  bool parallel = true;
  std::vector<bool> strict;  // by declared tool: its arguments must match its schema
};

struct AnswerFormat {
  enum class Kind : std::uint8_t { text, json_object, json_schema } kind = Kind::text;
  std::string name;
  Json schema;
  bool strict = false;
};

// A prompt of /v1/completions: text, or ids as they are.
using RawPrompt = std::variant<std::string, std::vector<TokenId>>;

struct ApiRequest {
  Api api = Api::chat_completions;
  std::string model;

  // chat_completions, responses, messages
  Conversation conversation;  // tools already attached where the model will read them
  ThinkingMode thinking_mode = ThinkingMode::thinking;
  ReasoningEffort effort = ReasoningEffort::high;
  // The function objects, as sent, in order. Empty under tool_choice "none": then neither the model
  // nor the parser is to know of them.
  std::vector<Json> tools;
  ToolPolicy tool_policy;
  AnswerFormat format;
  bool continues_answer = false;     // the last message is a prefix that the answer continues
  bool continues_reasoning = false;  // ... and ends inside its reasoning
  // Messages after which the client asked for a cache mark (Anthropic cache_control).
  std::vector<std::size_t> cache_marks;

  // completions
  std::vector<RawPrompt> prompts;
  std::optional<std::string> suffix;  // fill in the middle
  bool echo = false, parse_special = true, skip_special_tokens = true;
  bool prompt_logprobs = false;  // of the echoed prompt too

  SamplingOptions sampling;
  std::optional<std::int64_t> max_tokens;
  std::int32_t n = 1;
  std::vector<std::string> stop;
  bool stream = false, include_usage = false;
  bool logprobs = false;
  std::int32_t top_logprobs = 0;
  bool reasoning_alias = true;  // as ApiDefaults has it
  bool ignore_eos = false;
  std::int64_t min_tokens = 0;
  std::optional<std::int64_t> thinking_budget;

  std::string user_id;
  std::int32_t priority = 0;
  std::optional<std::string> stream_id;  // the client's name for it: idempotent, resumable
  bool resumable = false;

  // responses
  std::optional<std::string> previous_response_id;
  bool store = true, background = false;
  Json echoed;  // members of the request that the response object repeats

  std::vector<std::string> unknown_fields;  // ignored, and counted
};

struct ApiDefaults {
  ChatProfile profile = ChatProfile::v4_preview;
  std::int64_t max_output_tokens = 393216;  // --max-output
  bool enable_tasks = false;                // Quick Instruction tasks on messages
  bool response_format_in_prompt = true;
  bool mid_system_as_user = true;  // else a later system message is refused
  bool strict_reasoning = false;   // DeepSeek's 400 when tool history lacks its reasoning
  bool reasoning_alias = true;     // chat completions repeat reasoning_content as "reasoning"
  // When the request says nothing about it: what the alias that it names stands for.
  ThinkingMode thinking_mode = ThinkingMode::thinking;
};

// The JSON of a request's body. Throws ApiException (400) that says at which byte, or line and
// column, it stops being UTF-8 or JSON, and for arrays and objects nested deeper than
// kMaxBodyDepth. Of a repeated member the last counts.
inline constexpr std::size_t kMaxBodyDepth = 128;
[[nodiscard]] Json parse_body(std::string_view body);

// Throws ApiException for anything the API's documentation forbids; the message names the member.
// Values that only the model can judge (token ids, context length) are the server's to check.
[[nodiscard]] ApiRequest parse_request(Api api, const Json& body, const ApiDefaults& defaults);

// What one response is called. The same for every replay of it.
struct ResponseIdentity {
  std::string id;            // random part, base62: "chatcmpl-" and its kind are put before it
  std::string model;         // as the client named it
  std::int64_t created = 0;  // unix seconds
  std::string system_fingerprint;
  std::string nonce;  // 16 random bytes; ids of tool calls and items are derived from it
};
// "call_" (OpenAI) or "toolu_" (Anthropic) and 24 base62 characters: unguessable, and the same
// whenever this response is written again.
[[nodiscard]] std::string tool_call_id(Api api, const ResponseIdentity& identity,
                                       std::int32_t choice, std::size_t index);

struct Usage {
  std::int64_t prompt_tokens = 0, cached_tokens = 0, cache_write_tokens = 0;
  std::int64_t completion_tokens = 0, reasoning_tokens = 0;
};

enum class AnswerEnd : std::uint8_t { stop, stop_string, length, tool_calls, cancelled, error };

struct TokenLogprobText {
  std::string bytes;
  double logprob = 0;  // NaN where there is none: the first token of an echoed prompt
  struct Top {
    std::string bytes;
    double logprob = 0;
  };
  std::vector<Top> top;
};

struct SseEvent {
  std::string event;  // "" for none
  std::string data;   // one line
};

// Writes one response in its API's form, from begin() to end(). In stream mode every call returns
// the events it causes; otherwise they return nothing and body() has the whole. Pure: the same
// calls give the same bytes.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  // `usage` has the prompt's part.
  [[nodiscard]] virtual std::vector<SseEvent> begin(const Usage& usage) = 0;
  // What one token made certain: the parser's events (raw text of /v1/completions as ContentDelta),
  // and its logprobs when they were asked for (`in_reasoning` says which list). An echoed prompt of
  // /v1/completions comes the same way, before the tokens that were drawn.
  [[nodiscard]] virtual std::vector<SseEvent> events(std::int32_t choice,
                                                     const std::vector<DsmlEvent>& events,
                                                     const TokenLogprobText* logprob,
                                                     bool in_reasoning) = 0;
  // The choice is complete. `usage` has this choice's completion part; `detail` is the stop string
  // (stop_string) or the sentence (error).
  [[nodiscard]] virtual std::vector<SseEvent> finish(std::int32_t choice, AnswerEnd end,
                                                     const std::string& detail,
                                                     const Usage& usage) = 0;
  // All choices are. `usage` is the whole: the prompt's part and the sum of the choices. Includes
  // "[DONE]" where the API has it, unless a choice ended in an error: that was the last event.
  [[nodiscard]] virtual std::vector<SseEvent> end(const Usage& usage) = 0;
  // After end(); an error's body when a choice ended in one.
  [[nodiscard]] virtual std::string body() const = 0;
};

[[nodiscard]] std::unique_ptr<ResponseWriter> make_writer(const ApiRequest& request,
                                                          const ResponseIdentity& identity);

// An error in the middle of a stream, in the API's form.
[[nodiscard]] SseEvent stream_error(Api api, const ApiError& error, std::string_view request_id);

}  // namespace hadal::protocol
