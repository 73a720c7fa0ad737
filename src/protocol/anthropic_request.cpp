// POST /v1/messages: the request.
#include <fmt/format.h>

#include "protocol/anthropic_messages.h"
#include "protocol/api_common.h"
#include "protocol/api_dispatch.h"
#include "protocol/api_json.h"
#include "protocol/api_tools.h"

namespace hadal::protocol {
namespace {

constexpr NamedValue<bool> kThinkingTypes[] = {{.name = "enabled", .value = true},
                                               {.name = "adaptive", .value = true},
                                               {.name = "between_tools", .value = true},
                                               {.name = "disabled", .value = false}};
constexpr NamedValue<ToolMode> kChoices[] = {{.name = "auto", .value = ToolMode::automatic},
                                             {.name = "any", .value = ToolMode::required},
                                             {.name = "tool", .value = ToolMode::required},
                                             {.name = "none", .value = ToolMode::none}};

// {name, description, input_schema} becomes the function object that the model was trained to see.
// Returns whether it is marked for the cache.
bool read_tool(const Json& json, std::string path, ApiRequest& request) {
  Fields tool(json, std::move(path));
  const std::string* type = tool.text("type");
  if (type != nullptr && *type != "custom") {
    refuse_value(tool.path("type"), *tool.find("type"),
                 "\"custom\" or nothing; tools that run on the server are not offered here");
  }
  Json::Object function{{"name", tool.required("name")}};
  if (const Json* description = tool.find("description")) {
    function.push_back({"description", *description});
  }
  const Json& schema = tool.required("input_schema");
  (void)object_of(schema, tool.path("input_schema"));
  function.push_back({"parameters", schema});
  if (const Json* strict = tool.find("strict")) function.push_back({"strict", *strict});
  add_tool(request, Json(std::move(function)), tool.path());
  tool.ignore({"allowed_callers", "defer_loading", "eager_input_streaming", "input_examples"});
  const bool is_marked = tool.find("cache_control") != nullptr;
  tool.unknown(request.unknown_fields);
  return is_marked;
}

bool read_tools(Fields& body, ApiRequest& request) {
  bool is_marked = false;
  const Json::Array* tools = body.array("tools");
  for (std::size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    is_marked |= read_tool((*tools)[i], fmt::format("{}[{}]", body.path("tools"), i), request);
  }
  return is_marked;
}

void read_choice(Fields& body, ApiRequest& request) {
  const std::string path = body.path("tool_choice");
  std::optional<Fields> choice = body.object("tool_choice");
  if (!choice) return set_tool_choice(request, ToolMode::automatic, {}, path);
  const std::optional<ToolMode> mode = choice->word("type", kChoices);
  if (!mode) refuse_field(choice->path("type"), "is missing");
  std::vector<std::string> names;
  if (*choice->text("type") == "tool") names.push_back(choice->required_text("name"));
  request.tool_policy.parallel = !choice->boolean("disable_parallel_tool_use").value_or(false);
  choice->unknown(request.unknown_fields);
  set_tool_choice(request, *mode, std::move(names), path);
}

void read_thinking(Fields& body, const ApiDefaults& defaults, ApiRequest& request) {
  ThinkingWish wish;
  if (std::optional<Fields> thinking = body.object("thinking")) {
    wish.enabled = thinking->word("type", kThinkingTypes);
    if (!wish.enabled) refuse_field(thinking->path("type"), "is missing");
    // How long the model thinks is the effort's business; thinking_budget sets a limit.
    (void)thinking->integer("budget_tokens", {.min = 1});
    thinking->ignore({"display"});
    thinking->unknown(request.unknown_fields);
  }
  if (std::optional<Fields> config = body.object("output_config")) {
    if (const std::string* effort = config->text("effort")) {
      if (effort->empty()) refuse_field(config->path("effort"), "is empty");
      wish.effort = *effort;
      wish.effort_path = config->path("effort");
      // An effort is how hard to think when there is thinking; it does not ask for any.
      if (!wish.enabled && *effort != "none") {
        wish.enabled = defaults.thinking_mode == ThinkingMode::thinking;
      }
    }
    if (std::optional<Fields> format = config->object("format")) {
      if (format->required_text("type") != "json_schema") {
        refuse_value(format->path("type"), *format->find("type"), "\"json_schema\"");
      }
      request.format.kind = AnswerFormat::Kind::json_schema;
      request.format.name = "output";
      request.format.schema = format->required("schema");
      (void)object_of(request.format.schema, format->path("schema"));
      format->unknown(request.unknown_fields);
    }
    config->unknown(request.unknown_fields);
  }
  apply_thinking(wish, defaults, request);
}

void read_metadata(Fields& body, ApiRequest& request) {
  std::optional<Fields> metadata = body.object("metadata");
  if (!metadata) return;
  constexpr std::size_t kMaxUserBytes = 512;
  if (const std::string* user = metadata->text("user_id")) {
    if (user->size() > kMaxUserBytes) {
      refuse_field(metadata->path("user_id"),
                   fmt::format("has {} bytes, wanted at most {}", user->size(), kMaxUserBytes));
    }
    if (request.user_id.empty()) request.user_id = *user;
  }
  metadata->unknown(request.unknown_fields);
}

// What changes where and at which price an answer is made, and nothing in it.
void read_without_effect(Fields& body) {
  if (const Json::Array* servers = body.array("mcp_servers"); servers && !servers->empty()) {
    refuse_field(body.path("mcp_servers"), "this server runs no tools");
  }
  body.ignore({"anthropic_beta", "anthropic_version", "betas", "container", "context_management",
               "diagnostics", "inference_geo", "service_tier", "speed"});
}

ApiRequest parse(const Json& json, const ApiDefaults& defaults, bool needs_max_tokens) {
  Fields body(json, "");
  ApiRequest request;
  request.api = Api::messages;
  read_model(body, request);
  request.max_tokens = body.integer("max_tokens", {.min = 1, .max = defaults.max_output_tokens});
  if (!request.max_tokens && needs_max_tokens) {
    refuse_field(body.path("max_tokens"), "is missing");
  }
  const bool marks_tools = read_tools(body, request);
  std::vector<std::string> paths;
  read_anthropic_messages(body, marks_tools, request, paths);
  read_choice(body, request);
  read_thinking(body, defaults, request);
  read_stream(body, request);
  read_sampling(body, request);
  read_stop(body, "stop_sequences", request);
  read_extensions(body, request);
  read_metadata(body, request);
  read_without_effect(body);
  body.unknown(request.unknown_fields);
  finish_conversation(request, defaults, [&paths](std::size_t i) {
    return i < paths.size() ? paths[i] : std::string("messages");
  });
  return request;
}

}  // namespace

ApiRequest parse_messages(const Json& body, const ApiDefaults& defaults) {
  return parse(body, defaults, true);
}

ApiRequest parse_count_tokens(const Json& body, const ApiDefaults& defaults) {
  return parse(body, defaults, false);
}

std::string count_tokens_body(std::int64_t n_tokens) {
  JsonWriter out;
  out.begin_object().member("input_tokens", n_tokens).end_object();
  return out.take();
}

}  // namespace hadal::protocol
