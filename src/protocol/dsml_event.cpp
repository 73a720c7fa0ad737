#include "protocol/dsml_event.h"

namespace hadal::protocol {

const DeclaredTool::Property* DeclaredTool::find(std::string_view property) const {
  for (const Property& candidate : properties) {
    if (candidate.name == property) return &candidate;
  }
  return nullptr;
}

DeclaredTool declared_tool(const Json& function) {
  DeclaredTool tool;
  if (const Json* name = function.find("name"); name && name->as<std::string>()) {
    tool.name = *name->as<std::string>();
  }
  const Json* parameters = function.find("parameters");
  const Json* properties = parameters == nullptr ? nullptr : parameters->find("properties");
  const auto* members = properties == nullptr ? nullptr : properties->as<Json::Object>();
  if (members == nullptr) return tool;
  for (const Json::Member& member : *members) {
    const Json* type = member.value.find("type");
    const auto* word = type == nullptr ? nullptr : type->as<std::string>();
    tool.properties.push_back({member.key, word == nullptr ? std::string() : *word});
  }
  return tool;
}

std::vector<DeclaredTool> declared_tools(const std::vector<Json>& functions) {
  std::vector<DeclaredTool> tools;
  tools.reserve(functions.size());
  for (const Json& function : functions) tools.push_back(declared_tool(function));
  return tools;
}

const char* to_string(DsmlError error) {
  switch (error) {
    case DsmlError::missing_think_end:
      return "missing_think_end";
    case DsmlError::missing_eos:
      return "missing_eos";
    case DsmlError::special_in_text:
      return "special_in_text";
    case DsmlError::bad_block_glue:
      return "bad_block_glue";
    case DsmlError::bad_invoke_header:
      return "bad_invoke_header";
    case DsmlError::bad_parameter:
      return "bad_parameter";
    case DsmlError::bad_parameter_glue:
      return "bad_parameter_glue";
    case DsmlError::duplicate_parameter:
      return "duplicate_parameter";
    case DsmlError::text_after_block:
      return "text_after_block";
    case DsmlError::trailing_text:
      return "trailing_text";
  }
  return "?";
}

}  // namespace hadal::protocol
