// POST /v1/responses: the request.
#include <fmt/format.h>

#include "protocol/api_common.h"
#include "protocol/api_dispatch.h"
#include "protocol/api_tools.h"
#include "protocol/responses_input.h"
#include "protocol/responses_tools.h"

namespace hadal::protocol {
namespace {

constexpr std::int64_t kMaxTopLogprobs = 20;

constexpr NamedValue<AnswerFormat::Kind> kFormats[] = {
    {.name = "text", .value = AnswerFormat::Kind::text},
    {.name = "json_object", .value = AnswerFormat::Kind::json_object},
    {.name = "json_schema", .value = AnswerFormat::Kind::json_schema}};

void read_format(Fields& body, ApiRequest& request) {
  std::optional<Fields> text = body.object("text");
  if (!text) return;
  if (std::optional<Fields> format = text->object("format")) {
    const auto kind = format->word("type", kFormats);
    if (!kind) refuse_field(format->path("type"), "is missing");
    if (*kind == AnswerFormat::Kind::json_schema) request.format = read_json_schema(*format);
    request.format.kind = *kind;
    format->unknown(request.unknown_fields);
  }
  (void)text->text("verbosity");
  text->unknown(request.unknown_fields);
}

void read_reasoning(Fields& body, const ApiDefaults& defaults, ApiRequest& request) {
  ThinkingWish wish;
  if (std::optional<Fields> reasoning = body.object("reasoning")) {
    if (const std::string* effort = reasoning->text("effort")) {
      if (effort->empty()) refuse_field(reasoning->path("effort"), "is empty");
      wish.effort = *effort;
      wish.effort_path = reasoning->path("effort");
    }
    // The reasoning itself is in the answer; nobody sums it up.
    reasoning->ignore({"summary", "generate_summary"});
    reasoning->unknown(request.unknown_fields);
  }
  apply_thinking(wish, defaults, request);
}

void read_include(Fields& body, ApiRequest& request) {
  request.top_logprobs = static_cast<std::int32_t>(
      body.integer("top_logprobs", {.min = 0, .max = kMaxTopLogprobs}).value_or(0));
  request.logprobs = request.top_logprobs > 0;
  const Json::Array* include = body.array("include");
  for (std::size_t i = 0; include != nullptr && i < include->size(); ++i) {
    // Others ask for results of tools that this server does not run.
    const std::string& wish =
        text_of((*include)[i], fmt::format("{}[{}]", body.path("include"), i));
    if (wish == "message.output_text.logprobs") request.logprobs = true;
  }
}

void read_storage(Fields& body, ApiRequest& request) {
  if (const std::string* id = body.text("previous_response_id")) {
    request.previous_response_id = *id;
  }
  request.store = body.boolean("store").value_or(true);
  request.background = body.boolean("background").value_or(false);
  if (request.background && !request.store) {
    refuse_field(body.path("background"),
                 "a response in the background must be stored; leave out "
                 "\"store\": false");
  }
  body.refuse_if_given("conversation", "conversations are not kept here; use previous_response_id");
  body.refuse_if_given("prompt", "there are no stored prompts here; send instructions and input");
  (void)body.object("metadata");
}

void read_without_effect(Fields& body) {
  for (const char* key : {"prompt_cache_key", "prompt_cache_retention", "safety_identifier",
                          "service_tier", "truncation"}) {
    (void)body.text(key);
  }
  (void)body.integer("max_tool_calls", {.min = 1});
  body.ignore({"context_management", "moderation", "prompt_cache_options", "client_metadata"});
}

// Members of the response object that repeat the request's, in the order and with the defaults of
// OpenAI's.
Json echo(const Json& body, const ApiRequest& request) {
  Json::Object out;
  const auto sent = [&](const char* key, const Json& otherwise) {
    const Json* value = body.find(key);
    const bool is_there = value != nullptr && !value->is_null();
    out.push_back({key, is_there ? *value : otherwise});
  };
  sent("instructions", {});
  sent("max_output_tokens", {});
  sent("max_tool_calls", {});
  out.push_back({"parallel_tool_calls", Json(request.tool_policy.parallel)});
  sent("previous_response_id", {});
  sent("prompt_cache_key", {});
  const Json* reasoning = body.find("reasoning");
  const Json* effort = reasoning == nullptr ? nullptr : reasoning->find("effort");
  const Json* summary = reasoning == nullptr ? nullptr : reasoning->find("summary");
  out.push_back({"reasoning", Json(Json::Object{{"effort", effort ? *effort : Json()},
                                                {"summary", summary ? *summary : Json()}})});
  sent("safety_identifier", {});
  sent("service_tier", Json("default"));
  out.push_back({"store", Json(request.store)});
  sent("temperature", Json(1.0));
  Json::Object text{{"format", Json(Json::Object{{"type", Json("text")}})}};
  if (const Json* sent_text = body.find("text")) {
    if (const auto* members = sent_text->as<Json::Object>()) {
      for (const Json::Member& member : *members) {
        if (member.key != "format") {
          text.push_back(member);
        } else if (!member.value.is_null()) {
          text.front() = member;
        }
      }
    }
  }
  out.push_back({"text", Json(std::move(text))});
  sent("tool_choice", Json("auto"));
  sent("tools", Json(Json::Array{}));
  out.push_back({"top_logprobs", Json(Json::Integer{std::to_string(request.top_logprobs)})});
  sent("top_p", Json(1.0));
  sent("truncation", Json("disabled"));
  sent("user", {});
  sent("metadata", Json(Json::Object{}));
  return Json(std::move(out));
}

}  // namespace

ApiRequest parse_responses(const Json& json, const ApiDefaults& defaults) {
  Fields body(json, "");
  ApiRequest request;
  request.api = Api::responses;
  read_model(body, request);
  request.max_tokens =
      body.integer("max_output_tokens", {.min = 1, .max = defaults.max_output_tokens});
  std::vector<std::string> paths;
  read_responses_input(body, request, paths);
  read_responses_tools(body, request);
  read_format(body, request);
  read_reasoning(body, defaults, request);
  read_stream(body, request);
  request.include_usage = true;  // it is a member of the response
  read_sampling(body, request);
  read_include(body, request);
  read_storage(body, request);
  read_extensions(body, request);
  read_without_effect(body);
  body.unknown(request.unknown_fields);
  request.echoed = echo(json, request);
  finish_conversation(request, defaults, [&paths](std::size_t i) {
    return i < paths.size() ? paths[i] : std::string("input");
  });
  return request;
}

}  // namespace hadal::protocol
