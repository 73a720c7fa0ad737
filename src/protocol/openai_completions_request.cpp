// POST /v1/completions: the request.
#include <fmt/format.h>

#include <limits>

#include "protocol/api_common.h"
#include "protocol/api_dispatch.h"

namespace hadal::protocol {
namespace {

constexpr std::int64_t kMaxChoices = 16;
constexpr std::size_t kMaxPrompts = 256;
constexpr std::int64_t kMaxLogprobs = 20;
constexpr std::int64_t kDefaultMaxTokens = 16;  // OpenAI's

std::vector<TokenId> token_ids(const Json::Array& list, const std::string& path) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  if (list.empty()) refuse_field(path, "is empty");
  const IntegerRange range{.min = 0, .max = std::numeric_limits<TokenId>::max()};
  for (std::size_t i = 0; i < list.size(); ++i) {
    ids.push_back(static_cast<TokenId>(integer_of(list[i], fmt::format("{}[{}]", path, i), range)));
  }
  return ids;
}

// A string, strings, ids, or lists of ids.
std::vector<RawPrompt> prompts_of(const Json& value, const std::string& path) {
  constexpr std::string_view kWanted =
      "a string, an array of strings, token ids, or an array of arrays of token ids";
  if (const auto* text = value.as<std::string>()) return {*text};
  const auto* list = value.as<Json::Array>();
  if (list == nullptr) refuse_value(path, value, kWanted);
  if (list->empty()) refuse_field(path, "is empty");
  if (list->front().as<Json::Integer>() != nullptr) return {token_ids(*list, path)};
  if (list->size() > kMaxPrompts) {
    refuse_field(path,
                 fmt::format("has {} prompts, at most {} are allowed", list->size(), kMaxPrompts));
  }
  std::vector<RawPrompt> prompts;
  const bool are_texts = list->front().as<std::string>() != nullptr;
  for (std::size_t i = 0; i < list->size(); ++i) {
    const Json& item = (*list)[i];
    const std::string item_path = fmt::format("{}[{}]", path, i);
    if (are_texts) {
      prompts.emplace_back(text_of(item, item_path));
    } else if (const auto* ids = item.as<Json::Array>()) {
      prompts.emplace_back(token_ids(*ids, item_path));
    } else {
      refuse_value(item_path, item, i == 0 ? kWanted : "an array of token ids");
    }
  }
  return prompts;
}

void read_prompt(Fields& body, ApiRequest& request) {
  request.prompts = prompts_of(body.required("prompt"), body.path("prompt"));
  request.parse_special = body.boolean("parse_special").value_or(true);
  // Clients send an empty suffix for none.
  const std::string* suffix = body.text("suffix");
  if (suffix == nullptr || suffix->empty()) return;
  request.suffix = *suffix;
  for (const RawPrompt& prompt : request.prompts) {
    if (std::holds_alternative<std::string>(prompt)) continue;
    refuse_field(body.path("suffix"), "needs a prompt of text; token ids are taken as they are");
  }
}

void read_logprobs(Fields& body, ApiRequest& request) {
  const auto top = body.integer("logprobs", {.min = 0, .max = kMaxLogprobs});
  request.logprobs = top.has_value();
  request.top_logprobs = static_cast<std::int32_t>(top.value_or(0));
  // vLLM's: how many alternatives of each prompt token. Ours are as many as of the others.
  const bool wants_prompt =
      body.integer("prompt_logprobs", {.min = 0, .max = kMaxLogprobs}).has_value();
  if (wants_prompt && (!request.echo || !request.logprobs)) {
    refuse_field(body.path("prompt_logprobs"),
                 "is only allowed together with \"echo\": true and logprobs");
  }
  request.prompt_logprobs =
      request.echo && request.logprobs && (wants_prompt || request.max_tokens == 0);
}

}  // namespace

ApiRequest parse_completions(const Json& json, const ApiDefaults& defaults) {
  Fields body(json, "");
  ApiRequest request;
  request.api = Api::completions;
  request.thinking_mode = ThinkingMode::chat;
  request.effort = ReasoningEffort::none;
  read_model(body, request);
  read_prompt(body, request);
  request.echo = body.boolean("echo").value_or(false);
  request.max_tokens = body.integer("max_tokens", {.min = 0, .max = defaults.max_output_tokens})
                           .value_or(std::min(kDefaultMaxTokens, defaults.max_output_tokens));
  if (request.max_tokens == 0 && !request.echo) {
    refuse_field(body.path("max_tokens"), "found 0, which asks for nothing without \"echo\": true");
  }
  read_stream(body, request);
  read_sampling(body, request);
  request.n =
      static_cast<std::int32_t>(body.integer("n", {.min = 1, .max = kMaxChoices}).value_or(1));
  const auto best_of = body.integer("best_of", {.min = 1, .max = kMaxChoices});
  if (best_of && *best_of != request.n) {
    refuse_field(body.path("best_of"),
                 fmt::format("found {}, wanted the same as n, {}: every choice is returned",
                             *best_of, request.n));
  }
  read_stop(body, "stop", request);
  read_logprobs(body, request);
  request.skip_special_tokens = body.boolean("skip_special_tokens").value_or(true);
  read_extensions(body, request);
  body.unknown(request.unknown_fields);
  return request;
}

}  // namespace hadal::protocol
