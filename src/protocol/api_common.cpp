#include "protocol/api_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "core/digest.h"
#include "protocol/chat_format.h"

namespace hadal::protocol {
namespace {

constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxStopBytes = 256;
constexpr std::size_t kMaxBiases = 1024;
constexpr std::size_t kMaxUserBytes = 512;
constexpr std::size_t kMaxStreamIdBytes = 128;
constexpr std::int64_t kMaxTokenId = std::numeric_limits<TokenId>::max();

void read_logit_bias(Fields& body, ApiRequest& request) {
  const Json* value = body.find("logit_bias");
  if (value == nullptr) return;
  const std::string path = body.path("logit_bias");
  const Json::Object& biases = object_of(*value, path);
  if (biases.size() > kMaxBiases) {
    refuse_field(path,
                 fmt::format("has {} entries, at most {} are allowed", biases.size(), kMaxBiases));
  }
  for (const Json::Member& bias : biases) {
    TokenId id = 0;
    const char* end = bias.key.data() + bias.key.size();
    const auto result = std::from_chars(bias.key.data(), end, id);
    if (result.ec != std::errc() || result.ptr != end || id < 0) {
      refuse_value(path, Json(bias.key), "token ids as keys");
    }
    request.sampling.logit_bias[id] =
        number_of(bias.value, fmt::format("{}.{}", path, bias.key), {.min = -100, .max = 100});
  }
}

// A seed is any integer of 64 bits, with or without sign: every bit pattern is one.
void read_seed(Fields& body, ApiRequest& request) {
  const Json* value = body.find("seed");
  if (value == nullptr) return;
  if (const auto* integer = value->as<Json::Integer>()) {
    const char* begin = integer->digits.data();
    const char* end = begin + integer->digits.size();
    std::uint64_t seed = 0;
    if (std::from_chars(begin, end, seed).ec == std::errc() && *begin != '-') {
      request.sampling.seed = seed;
      return;
    }
  }
  request.sampling.seed = static_cast<std::uint64_t>(integer_of(*value, body.path("seed"), {}));
}

std::string stop_string(const Json& value, const std::string& path) {
  const std::string& text = text_of(value, path);
  if (text.empty() || text.size() > kMaxStopBytes) {
    refuse_field(path, fmt::format("has {} bytes, wanted 1 to {}", text.size(), kMaxStopBytes));
  }
  return text;
}

std::string short_text(Fields& body, std::string_view key, std::size_t max_bytes) {
  const std::string* text = body.text(key);
  if (text == nullptr) return {};
  if (text->size() > max_bytes) {
    refuse_field(body.path(key),
                 fmt::format("has {} bytes, wanted at most {}", text->size(), max_bytes));
  }
  return *text;
}

bool is_instruction(const Message& message) {
  return message.role == Role::system || message.role == Role::developer;
}

// System and developer messages: those at the head are system text, later ones are the user's.
// Returns how many stand at the head.
std::size_t place_instructions(std::vector<Message>& messages, const ApiDefaults& defaults,
                               const MessagePath& path_of) {
  const auto head_end = std::ranges::find_if_not(messages, is_instruction);
  for (auto message = messages.begin(); message != messages.end(); ++message) {
    if (!is_instruction(*message)) continue;
    if (message < head_end) {
      message->role = Role::system;
      continue;
    }
    if (!defaults.mid_system_as_user && message->role == Role::system) {
      refuse_field(path_of(static_cast<std::size_t>(message - messages.begin())) + ".role",
                   "this model reads system messages only at the beginning; move it there or make "
                   "it a user message");
    }
    message->role = Role::user;
  }
  return static_cast<std::size_t>(head_end - messages.begin());
}

// validate() speaks of messages[i]; the client may have written them elsewhere.
void check_order(const Conversation& conversation, const MessagePath& path_of) {
  try {
    validate(conversation);
  } catch (const Error& e) {
    std::string_view what = e.what();
    const std::size_t colon = what.find(": ");
    const std::string_view where = what.substr(0, colon);
    what.remove_prefix(colon + 2);
    const std::size_t bracket = where.find('[');
    if (bracket == std::string_view::npos) {  // the list as a whole
      const std::string first = path_of(0);
      refuse_field(first.substr(0, first.find('[')), what);
    }
    std::size_t index = 0;
    std::from_chars(where.data() + bracket + 1, where.data() + where.size(), index);
    refuse_field(path_of(index), what);
  }
}

void check_arguments(const std::vector<Message>& messages, const MessagePath& path_of) {
  for (std::size_t i = 0; i < messages.size(); ++i) {
    for (const ToolCall& call : messages[i].tool_calls) {
      // What is no JSON at all is rendered as it is.
      const std::optional<Json> value = Json::try_parse(call.arguments);
      if (!value || value->is_null() || value->as<Json::Object>() != nullptr) continue;
      refuse_field(path_of(i), fmt::format("the arguments of tool call '{}' are a JSON {}, wanted "
                                           "an object",
                                           call.id, value->type_name()));
    }
  }
}

// The answer follows a user turn or a tool result, or continues the last message.
void check_end(ApiRequest& request, const MessagePath& path_of) {
  const std::vector<Message>& messages = request.conversation.messages;
  const Message& last = messages.back();
  const std::size_t last_index = messages.size() - 1;
  if (last.role == Role::user || last.role == Role::tool || last.task) return;
  if (last.role != Role::assistant || !last.wo_eos) {
    refuse_field(path_of(last_index),
                 "the last message must be a user or tool message, or an assistant message with "
                 "\"prefix\": true that the answer is to continue");
  }
  if (!last.tool_calls.empty()) {
    refuse_field(path_of(last_index), "a prefix to be continued cannot have tool calls");
  }
  const Role before = last_index == 0 ? Role::system : messages[last_index - 1].role;
  if (before != Role::user && before != Role::tool) {
    refuse_field(path_of(last_index), "a prefix must follow a user or tool message");
  }
  request.continues_answer = true;
  request.continues_reasoning =
      request.thinking_mode == ThinkingMode::thinking && last.content.empty();
}

void check_reasoning(const ApiRequest& request) {
  if (request.thinking_mode != ThinkingMode::thinking) return;
  for (const Message& message : request.conversation.messages) {
    if (message.tool_calls.empty() || !message.reasoning_content.empty()) continue;
    ApiError error;  // the words are DeepSeek's: clients look for them
    error.message = "The reasoning_content in the thinking mode must be passed back to the API.";
    error.code = "invalid_request_error";
    throw ApiException(std::move(error));
  }
}

void join_head(ApiRequest& request, std::size_t n_head) {
  if (n_head < 2) return;
  std::vector<Message>& messages = request.conversation.messages;
  for (std::size_t i = 1; i < n_head; ++i) {
    messages.front().content.append("\n\n").append(messages[i].content);
  }
  messages.erase(messages.begin() + 1, messages.begin() + static_cast<std::ptrdiff_t>(n_head));
  for (std::size_t& mark : request.cache_marks) mark -= std::min(mark, n_head - 1);
}

void attach_blocks(ApiRequest& request, const ApiDefaults& defaults) {
  const bool shows_format = request.format.kind == AnswerFormat::Kind::json_schema &&
                            defaults.response_format_in_prompt && request.format.schema.truthy();
  if (request.tools.empty() && !shows_format) return;
  std::vector<Message>& messages = request.conversation.messages;
  const std::size_t n_before = messages.size();
  attach_tools(request.conversation, request.tools);
  if (messages.size() > n_before) {
    for (std::size_t& mark : request.cache_marks) ++mark;
  }
  if (shows_format) messages.front().response_format = request.format.schema;
}

}  // namespace

void read_model(Fields& body, ApiRequest& request) {
  request.model = body.required_text("model");
  if (request.model.empty()) refuse_field(body.path("model"), "is empty");
}

void read_sampling(Fields& body, ApiRequest& request) {
  SamplingOptions& sampling = request.sampling;
  sampling.temperature = body.number("temperature", {.min = 0, .max = 2});
  sampling.top_p = body.number("top_p", {.min = 0, .max = 1, .without_min = true});
  sampling.min_p = body.number("min_p", {.min = 0, .max = 1});
  sampling.presence_penalty = body.number("presence_penalty", {.min = -2, .max = 2});
  sampling.frequency_penalty = body.number("frequency_penalty", {.min = -2, .max = 2});
  sampling.repetition_penalty =
      body.number("repetition_penalty", {.min = 0, .max = HUGE_VAL, .without_min = true});
  // Other servers write "off" as -1.
  sampling.top_k = body.integer("top_k", {.min = -1, .max = kMaxTokenId});
  if (sampling.top_k == -1) sampling.top_k = 0;
  read_logit_bias(body, request);
  read_seed(body, request);
}

void read_stop(Fields& body, std::string_view key, ApiRequest& request) {
  const Json* value = body.find(key);
  if (value == nullptr) return;
  const std::string path = body.path(key);
  if (value->as<std::string>() != nullptr) {
    request.stop.push_back(stop_string(*value, path));
    return;
  }
  const auto* list = value->as<Json::Array>();
  if (list == nullptr) refuse_value(path, *value, "a string or an array of strings");
  if (list->size() > kMaxStops) {
    refuse_field(path,
                 fmt::format("has {} strings, at most {} are allowed", list->size(), kMaxStops));
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    request.stop.push_back(stop_string((*list)[i], fmt::format("{}[{}]", path, i)));
  }
}

void read_stream(Fields& body, ApiRequest& request) {
  request.stream = body.boolean("stream").value_or(false);
  std::optional<Fields> options = body.object("stream_options");
  if (!options) return;
  if (!request.stream) {
    refuse_field(options->path(), "is only allowed together with \"stream\": true");
  }
  request.include_usage = options->boolean("include_usage").value_or(false);
  options->ignore({"include_obfuscation"});
  options->unknown(request.unknown_fields);
}

void read_extensions(Fields& body, ApiRequest& request) {
  request.user_id = short_text(body, "user_id", kMaxUserBytes);
  std::string user = short_text(body, "user", kMaxUserBytes);
  if (request.user_id.empty()) request.user_id = std::move(user);
  request.priority = static_cast<std::int32_t>(
      body.integer("priority", {.min = std::numeric_limits<std::int32_t>::min(),
                                .max = std::numeric_limits<std::int32_t>::max()})
          .value_or(0));
  if (body.find("stream_id") != nullptr) {
    request.stream_id = short_text(body, "stream_id", kMaxStreamIdBytes);
    if (request.stream_id->empty()) refuse_field(body.path("stream_id"), "is empty");
  }
  request.resumable = body.boolean("resumable").value_or(false);
  request.ignore_eos = body.boolean("ignore_eos").value_or(false);
  request.thinking_budget = body.integer("thinking_budget", {.min = 0});
  request.min_tokens = body.integer("min_tokens", {.min = 0}).value_or(0);
  if (request.max_tokens && request.min_tokens > *request.max_tokens) {
    refuse_field(body.path("min_tokens"), fmt::format("found {}, which is more than max_tokens, {}",
                                                      request.min_tokens, *request.max_tokens));
  }
}

void apply_thinking(const ThinkingWish& wish, const ApiDefaults& defaults, ApiRequest& request) {
  try {
    request.effort = reasoning_effort_from(wish.effort, defaults.profile);
  } catch (const Error& e) {
    throw api_exception(e, wish.effort_path);
  }
  const bool thinks = wish.enabled.value_or(!wish.effort.empty() ||
                                            defaults.thinking_mode == ThinkingMode::thinking) &&
                      request.effort != ReasoningEffort::none;
  request.thinking_mode = thinks ? ThinkingMode::thinking : ThinkingMode::chat;
  if (!thinks) request.effort = ReasoningEffort::none;
}

void finish_conversation(ApiRequest& request, const ApiDefaults& defaults,
                         const MessagePath& path_of) {
  std::vector<Message>& messages = request.conversation.messages;
  const std::size_t n_head = place_instructions(messages, defaults, path_of);
  check_order(request.conversation, path_of);
  check_arguments(messages, path_of);
  check_end(request, path_of);
  if (defaults.strict_reasoning) check_reasoning(request);
  join_head(request, n_head);
  attach_blocks(request, defaults);
}

ApiException api_exception(const Error& error, std::string_view path) {
  ApiError out;
  out.message = fmt::format("{}: {}", path, error.what());
  out.param = std::string(path);
  return ApiException(std::move(out));
}

std::string derived_id(std::string_view prefix, const ResponseIdentity& identity,
                       std::string_view kind, std::int32_t choice, std::size_t index) {
  static constexpr std::string_view kDigits =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  static constexpr int kCharacters = 24;  // 142 bits, of a digest of 256
  Sha256Digest number = sha256(
      fmt::format("{}:{}:{}:{}:{}", identity.nonce.size(), identity.nonce, kind, choice, index));
  std::string id(prefix);
  for (int i = 0; i < kCharacters; ++i) {
    unsigned remainder = 0;  // long division of the digest by the base
    for (std::byte& digit : number) {
      const unsigned value = remainder * 256 + std::to_integer<unsigned>(digit);
      digit = static_cast<std::byte>(value / kDigits.size());
      remainder = value % kDigits.size();
    }
    id += kDigits[remainder];
  }
  return id;
}

}  // namespace hadal::protocol
