#include "protocol/api_tools.h"

#include <fmt/format.h>

#include <algorithm>

namespace hadal::protocol {
namespace {

constexpr std::size_t kMaxNameBytes = 64;

constexpr NamedValue<ToolMode> kChoices[] = {{.name = "none", .value = ToolMode::none},
                                             {.name = "auto", .value = ToolMode::automatic},
                                             {.name = "required", .value = ToolMode::required}};
constexpr NamedValue<ToolMode> kAllowedModes[] = {
    {.name = "auto", .value = ToolMode::automatic},
    {.name = "required", .value = ToolMode::required}};

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.' || c == ':';
}

void check_name(const std::string& name, const std::string& path) {
  if (name.empty() || name.size() > kMaxNameBytes ||
      !std::ranges::all_of(name, is_name_character)) {
    refuse_value(path, Json(name),
                 fmt::format("1 to {} letters, digits or any of _ - . :", kMaxNameBytes));
  }
}

const std::string& name_of(const Json& function) {
  return *function.find("name")->as<std::string>();
}

bool declares(const ApiRequest& request, std::string_view name) {
  return std::ranges::any_of(request.tools,
                             [&](const Json& function) { return name_of(function) == name; });
}

}  // namespace

std::string chosen_function(const Json& value, const std::string& path) {
  Fields choice(value, path);
  const std::string& type = choice.required_text("type");
  if (type != "function") {
    refuse_value(choice.path("type"), *choice.find("type"), "\"function\"");
  }
  if (std::optional<Fields> function = choice.object("function")) {
    return function->required_text("name");
  }
  return choice.required_text("name");
}

void add_tool(ApiRequest& request, const Json& function, const std::string& path) {
  if (request.tools.size() == kMaxTools) {
    refuse_field(path, fmt::format("there are more than {} tools", kMaxTools));
  }
  Fields fields(function, path);
  const std::string& name = fields.required_text("name");
  check_name(name, fields.path("name"));
  if (declares(request, name)) {
    refuse_field(fields.path("name"), fmt::format("another tool is called '{}' already", name));
  }
  (void)fields.text("description");
  const Json* parameters = fields.find("parameters");
  if (parameters != nullptr) (void)object_of(*parameters, fields.path("parameters"));
  const bool strict = fields.boolean("strict").value_or(false);
  if (strict && parameters != nullptr && parameters->truthy()) {
    check_strict_schema(*parameters, fields.path("parameters"));
  }
  fields.unknown(request.unknown_fields);
  request.tools.push_back(function);
  request.tool_policy.strict.push_back(strict);
}

void add_function_tools(ApiRequest& request, const Json& tools, const std::string& path) {
  const Json::Array& list = array_of(tools, path);
  for (std::size_t i = 0; i < list.size(); ++i) {
    Fields tool(list[i], fmt::format("{}[{}]", path, i));
    const std::string* type = tool.text("type");
    if (type != nullptr && *type != "function") {
      refuse_value(tool.path("type"), *tool.find("type"),
                   "\"function\"; other tools are not offered here");
    }
    add_tool(request, tool.required("function"), tool.path("function"));
    tool.unknown(request.unknown_fields);
  }
}

void set_tool_choice(ApiRequest& request, ToolMode mode, std::vector<std::string> names,
                     const std::string& path) {
  if (mode == ToolMode::required && request.tools.empty()) {
    refuse_field(path, "a tool call is required, but the request has no tools");
  }
  for (const std::string& name : names) {
    if (!declares(request, name)) {
      refuse_field(path, fmt::format("there is no tool '{}' among the tools", name));
    }
  }
  if (mode == ToolMode::none) {
    request.tools.clear();
    request.tool_policy.strict.clear();
  }
  request.tool_policy.mode = request.tools.empty() ? ToolMode::none : mode;
  request.tool_policy.allowed = std::move(names);
}

void read_tool_choice(ApiRequest& request, const Json* choice, const std::string& path,
                      std::string (*chosen_name)(const Json&, const std::string&)) {
  if (choice == nullptr) return set_tool_choice(request, ToolMode::automatic, {}, path);
  if (const auto* word = choice->as<std::string>()) {
    for (const NamedValue<ToolMode>& entry : kChoices) {
      if (entry.name == *word) return set_tool_choice(request, entry.value, {}, path);
    }
  }
  if (choice->as<Json::Object>() == nullptr) {
    refuse_value(path, *choice, "\"none\", \"auto\", \"required\" or an object that names tools");
  }
  Fields fields(*choice, path);
  if (fields.required_text("type") != "allowed_tools") {
    return set_tool_choice(request, ToolMode::required, {chosen_name(*choice, path)}, path);
  }
  std::optional<Fields> nested = fields.object("allowed_tools");
  Fields& allowed = nested ? *nested : fields;
  const std::optional<ToolMode> mode = allowed.word("mode", kAllowedModes);
  if (!mode) refuse_field(allowed.path("mode"), "is missing");
  const std::string list_path = allowed.path("tools");
  const Json::Array& list = array_of(allowed.required("tools"), list_path);
  if (list.empty()) {
    refuse_field(list_path, "is empty; tool_choice \"none\" is how to allow no tool");
  }
  std::vector<std::string> names;
  names.reserve(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    names.push_back(chosen_name(list[i], fmt::format("{}[{}]", list_path, i)));
  }
  set_tool_choice(request, *mode, std::move(names), path);
}

AnswerFormat read_json_schema(Fields& fields) {
  AnswerFormat format;
  format.kind = AnswerFormat::Kind::json_schema;
  format.name = fields.required_text("name");
  check_name(format.name, fields.path("name"));
  (void)fields.text("description");
  format.schema = fields.required("schema");
  (void)object_of(format.schema, fields.path("schema"));
  format.strict = fields.boolean("strict").value_or(false);
  if (format.strict) check_strict_schema(format.schema, fields.path("schema"));
  return format;
}

}  // namespace hadal::protocol
