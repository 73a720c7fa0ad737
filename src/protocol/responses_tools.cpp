#include "protocol/responses_tools.h"

#include <fmt/format.h>

#include <algorithm>

#include "protocol/api_tools.h"

namespace hadal::protocol {
namespace {

const std::string& text_member(const Json& object, std::string_view key) {
  static const std::string kNone;
  const Json* member = object.find(key);
  const auto* text = member == nullptr ? nullptr : member->as<std::string>();
  return text == nullptr ? kNone : *text;
}

// The function object of a function tool: what the client sent, without what is not about the
// function.
Json function_object(const Json& tool, std::string_view name) {
  Json::Object function;
  for (const Json::Member& member : *tool.as<Json::Object>()) {
    if (member.key == "name") {
      function.push_back({"name", Json(std::string(name))});
    } else if (member.key == "description" || member.key == "parameters" ||
               member.key == "strict") {
      if (!member.value.is_null()) function.push_back(member);
    }
  }
  return Json(std::move(function));
}

// A freeform tool as a function of one text. A grammar for it is something that the model can be
// told, in the description of that text.
Json custom_function(Fields& tool, std::string_view name) {
  Json::Object input{{"type", Json("string")}};
  if (std::optional<Fields> format = tool.object("format")) {
    const std::string& type = format->required_text("type");
    if (type == "grammar") {
      input.push_back({"description", Json(fmt::format("Must follow this grammar ({}):\n{}",
                                                       format->required_text("syntax"),
                                                       format->required_text("definition")))});
    } else if (type != "text") {
      refuse_value(format->path("type"), *format->find("type"), "\"text\" or \"grammar\"");
    }
  }
  Json::Object function{{"name", Json(std::string(name))}};
  if (const std::string* description = tool.text("description")) {
    function.push_back({"description", Json(*description)});
  }
  Json::Object parameters{{"type", Json("object")},
                          {"properties", Json(Json::Object{{"input", Json(std::move(input))}})},
                          {"required", Json(Json::Array{Json("input")})}};
  function.push_back({"parameters", Json(std::move(parameters))});
  return Json(std::move(function));
}

class ToolReader {
 public:
  explicit ToolReader(ApiRequest& request) : request_(request) {}

  void list(const Json::Array& tools, const std::string& path, std::string_view name_space) {
    for (std::size_t i = 0; i < tools.size(); ++i) {
      one(tools[i], fmt::format("{}[{}]", path, i), name_space);
    }
  }

 private:
  void one(const Json& json, std::string path, std::string_view name_space) {
    Fields tool(json, std::move(path));
    const std::string& type = tool.required_text("type");
    if (type == "namespace" && name_space.empty()) {
      const std::string& group = tool.required_text("name");
      if (group.empty()) refuse_field(tool.path("name"), "is empty");
      (void)tool.text("description");
      const std::string list_path = tool.path("tools");
      list(array_of(tool.required("tools"), list_path), list_path, group);
    } else if (type == "function" || type == "custom") {
      const std::string name = flattened_name(name_space, tool.required_text("name"));
      const bool is_custom = type == "custom";
      add_tool(request_, is_custom ? custom_function(tool, name) : function_object(json, name),
               tool.path());
      tool.ignore({"description", "parameters", "strict", "format", "allowed_callers",
                   "defer_loading", "output_schema"});
    } else {
      refuse_value(tool.path("type"), *tool.find("type"),
                   "\"function\", \"custom\" or \"namespace\"; tools that run on the server are "
                   "not offered here");
    }
    tool.unknown(request_.unknown_fields);
  }

  ApiRequest& request_;
};

// The name of a chosen tool as the model sees it.
std::string chosen_name(const Json& json, const std::string& path) {
  Fields choice(json, path);
  const std::string& type = choice.required_text("type");
  if (type != "function" && type != "custom") {
    refuse_value(choice.path("type"), *choice.find("type"),
                 "\"function\" or \"custom\"; tools that run on the server are not offered here");
  }
  const std::string* name_space = choice.text("namespace");
  return flattened_name(name_space == nullptr ? "" : *name_space, choice.required_text("name"));
}

void collect(const Json& tools, const std::string& name_space,
             std::map<std::string, ResponsesTool>& out) {
  const auto* list = tools.as<Json::Array>();
  if (list == nullptr) return;
  for (const Json& tool : *list) {
    const std::string& type = text_member(tool, "type");
    const std::string& name = text_member(tool, "name");
    if (type == "namespace") {
      if (const Json* inner = tool.find("tools")) collect(*inner, name, out);
    } else {
      out[flattened_name(name_space, name)] = {name, name_space, type == "custom"};
    }
  }
}

}  // namespace

std::string flattened_name(std::string_view name_space, std::string_view name) {
  return name_space.empty() ? std::string(name) : fmt::format("{}__{}", name_space, name);
}

std::map<std::string, ResponsesTool> responses_tools(const Json* tools) {
  std::map<std::string, ResponsesTool> out;
  if (tools != nullptr) collect(*tools, {}, out);
  return out;
}

void read_responses_tools(Fields& body, ApiRequest& request) {
  if (const Json::Array* tools = body.array("tools")) {
    ToolReader(request).list(*tools, body.path("tools"), {});
  }
  read_tool_choice(request, body.find("tool_choice"), body.path("tool_choice"), chosen_name);
  request.tool_policy.parallel = body.boolean("parallel_tool_calls").value_or(true);
}

std::string custom_arguments(std::string_view input) {
  return fmt::format(R"({{"input": {}}})", json_string(input));
}

std::string custom_input(std::string_view arguments) {
  const std::optional<Json> json = Json::try_parse(arguments);
  const Json* input = json ? json->find("input") : nullptr;
  const auto* text = input == nullptr ? nullptr : input->as<std::string>();
  return text == nullptr ? std::string(arguments) : *text;
}

}  // namespace hadal::protocol
