// POST /v1/chat/completions: the request.
#include <fmt/format.h>

#include <algorithm>

#include "protocol/api_common.h"
#include "protocol/api_dispatch.h"
#include "protocol/api_tools.h"
#include "protocol/openai_messages.h"

namespace hadal::protocol {
namespace {

constexpr std::int64_t kMaxChoices = 16;
constexpr std::int64_t kMaxTopLogprobs = 20;

constexpr NamedValue<bool> kThinkingTypes[] = {{.name = "enabled", .value = true},
                                               {.name = "disabled", .value = false}};
constexpr NamedValue<AnswerFormat::Kind> kFormats[] = {
    {.name = "text", .value = AnswerFormat::Kind::text},
    {.name = "json_object", .value = AnswerFormat::Kind::json_object},
    {.name = "json_schema", .value = AnswerFormat::Kind::json_schema}};

void read_max_tokens(Fields& body, const ApiDefaults& defaults, ApiRequest& request) {
  const IntegerRange range{.min = 1, .max = defaults.max_output_tokens};
  for (const char* key : {"max_tokens", "max_completion_tokens"}) {
    const std::optional<std::int64_t> given = body.integer(key, range);
    if (given) request.max_tokens = std::min(*given, request.max_tokens.value_or(*given));
  }
}

void read_logprobs(Fields& body, ApiRequest& request) {
  request.logprobs = body.boolean("logprobs").value_or(false);
  request.top_logprobs = static_cast<std::int32_t>(
      body.integer("top_logprobs", {.min = 0, .max = kMaxTopLogprobs}).value_or(0));
  if (request.top_logprobs > 0 && !request.logprobs) {
    refuse_field(body.path("top_logprobs"), "is only allowed together with \"logprobs\": true");
  }
}

void read_format(Fields& body, ApiRequest& request) {
  std::optional<Fields> format = body.object("response_format");
  if (!format) return;
  const auto kind = format->word("type", kFormats);
  if (!kind) refuse_field(format->path("type"), "is missing");
  if (*kind == AnswerFormat::Kind::json_schema) {
    Fields schema(format->required("json_schema"), format->path("json_schema"));
    request.format = read_json_schema(schema);
    schema.unknown(request.unknown_fields);
  }
  request.format.kind = *kind;
  format->unknown(request.unknown_fields);
}

// DeepSeek's switch, the template variables of vLLM's and SGLang's clients, OpenAI's effort.
void read_thinking(Fields& body, const ApiDefaults& defaults, ApiRequest& request) {
  ThinkingWish wish;
  const auto effort = [&wish](Fields& fields) {
    const std::string* word = fields.text("reasoning_effort");
    if (word == nullptr) return;
    if (word->empty()) refuse_field(fields.path("reasoning_effort"), "is empty");
    wish.effort = *word;
    wish.effort_path = fields.path("reasoning_effort");
  };
  if (std::optional<Fields> variables = body.object("chat_template_kwargs")) {
    for (const char* key : {"thinking", "enable_thinking"}) {
      if (const std::optional<bool> enabled = variables->boolean(key)) wish.enabled = enabled;
    }
    effort(*variables);
    variables->unknown(request.unknown_fields);
  }
  if (std::optional<Fields> thinking = body.object("thinking")) {
    const std::optional<bool> enabled = thinking->word("type", kThinkingTypes);
    if (!enabled) refuse_field(thinking->path("type"), "is missing");
    wish.enabled = enabled;
    thinking->unknown(request.unknown_fields);
  }
  effort(body);
  apply_thinking(wish, defaults, request);
}

void read_tools(Fields& body, ApiRequest& request) {
  body.refuse_if_given("functions", "is not supported; use tools");
  body.refuse_if_given("function_call", "is not supported; use tool_choice");
  body.refuse_if_given("web_search_options", "this server has no web search");
  if (const Json* tools = body.find("tools")) {
    add_function_tools(request, *tools, body.path("tools"));
  }
  read_tool_choice(request, body.find("tool_choice"), body.path("tool_choice"));
  request.tool_policy.parallel = body.boolean("parallel_tool_calls").value_or(true);
}

// What changes where an answer is billed, stored or looked for, and nothing in it.
void read_without_effect(Fields& body) {
  body.refuse_if_given("audio", "this server writes text only");
  if (const Json::Array* modalities = body.array("modalities")) {
    for (const Json& modality : *modalities) {
      if (text_of(modality, body.path("modalities")) != "text") {
        refuse_value(body.path("modalities"), modality, "\"text\"");
      }
    }
  }
  (void)body.boolean("store");
  (void)body.object("metadata");
  for (const char* key : {"service_tier", "safety_identifier", "prompt_cache_key",
                          "prompt_cache_retention", "verbosity"}) {
    (void)body.text(key);
  }
  body.ignore({"prediction", "prompt_cache_options", "moderation"});
}

}  // namespace

ApiRequest parse_chat_completions(const Json& json, const ApiDefaults& defaults) {
  Fields body(json, "");
  ApiRequest request;
  request.api = Api::chat_completions;
  request.reasoning_alias = defaults.reasoning_alias;
  read_model(body, request);
  read_chat_messages(body, defaults, request);
  read_max_tokens(body, defaults, request);
  read_stream(body, request);
  read_sampling(body, request);
  request.n =
      static_cast<std::int32_t>(body.integer("n", {.min = 1, .max = kMaxChoices}).value_or(1));
  read_stop(body, "stop", request);
  read_logprobs(body, request);
  read_format(body, request);
  read_tools(body, request);
  read_thinking(body, defaults, request);
  read_extensions(body, request);
  read_without_effect(body);
  body.unknown(request.unknown_fields);
  finish_conversation(request, defaults,
                      [](std::size_t i) { return fmt::format("messages[{}]", i); });
  return request;
}

}  // namespace hadal::protocol
