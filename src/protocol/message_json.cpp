#include "protocol/message_json.h"

#include <fmt/format.h>

#include "core/error.h"

namespace hadal::protocol {
namespace {

[[noreturn]] void refuse(std::string_view where, std::string_view key, const Json& found,
                         std::string_view wanted) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}.{}: found {}, wanted {}", where, key, found.type_name(), wanted));
}

// The text under `key`; empty when it is missing or null.
std::string text_member(const Json& object, std::string_view key, std::string_view where) {
  const Json* member = object.find(key);
  if (member == nullptr || member->is_null()) return {};
  const auto* text = member->as<std::string>();
  if (text == nullptr) refuse(where, key, *member, "a string");
  return *text;
}

bool bool_member(const Json& object, std::string_view key, std::string_view where) {
  const Json* member = object.find(key);
  if (member == nullptr || member->is_null()) return false;
  const auto* value = member->as<bool>();
  if (value == nullptr) refuse(where, key, *member, "true or false");
  return *value;
}

const Json::Array& array_of(const Json& value, std::string_view where) {
  const auto* array = value.as<Json::Array>();
  if (array == nullptr) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: found {}, wanted an array", where, value.type_name()));
  }
  return *array;
}

std::string joined_parts(const Json::Array& parts, Role role, std::string_view where) {
  std::string out;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string part_where = fmt::format("{}.content[{}]", where, i);
    const std::string type = text_member(parts[i], "type", part_where);
    if (i > 0) out += "\n\n";
    if (type == "text") {
      out += text_member(parts[i], "text", part_where);
    } else if (role == Role::tool) {
      out += fmt::format("[Unsupported {}]", type);
    } else {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}: unsupported content type '{}'; only text can be read here",
                              part_where, type));
    }
  }
  return out;
}

std::string content_of(const Json& message, Role role, std::string_view where) {
  const Json* content = message.find("content");
  if (content != nullptr) {
    if (const auto* parts = content->as<Json::Array>()) return joined_parts(*parts, role, where);
  }
  return text_member(message, "content", where);
}

ToolCall tool_call_from(const Json& call, std::string_view where) {
  const Json* function = call.find("function");
  if (function == nullptr) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: has no 'function' with name and arguments", where));
  }
  ToolCall out;
  out.id = text_member(call, "id", where);
  if (out.id.empty()) out.id = text_member(*function, "id", where);
  out.name = text_member(*function, "name", where);
  if (out.name.empty()) {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}.function.name: is missing", where));
  }
  const Json* arguments = function->find("arguments");
  if (arguments == nullptr || arguments->is_null()) return out;
  const auto* text = arguments->as<std::string>();
  out.arguments = text != nullptr ? *text : arguments->dump();
  return out;
}

}  // namespace

Message message_from_json(const Json& message, std::string_view where) {
  if (message.as<Json::Object>() == nullptr) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: found {}, wanted an object", where, message.type_name()));
  }
  Message out;
  try {
    out.role = role_from(text_member(message, "role", where));
    const std::string task = text_member(message, "task", where);
    if (!task.empty()) out.task = task_from(task);
  } catch (const Error& e) {
    throw Error(e.code, fmt::format("{}: {}", where, e.what()));
  }
  out.content = content_of(message, out.role, where);
  out.reasoning_content = text_member(message, "reasoning_content", where);
  out.tool_call_id = text_member(message, "tool_call_id", where);
  out.wo_eos = bool_member(message, "wo_eos", where) || bool_member(message, "prefix", where);

  if (const Json* calls = message.find("tool_calls"); calls != nullptr && !calls->is_null()) {
    const std::string calls_where = fmt::format("{}.tool_calls", where);
    const auto& array = array_of(*calls, calls_where);
    for (std::size_t i = 0; i < array.size(); ++i) {
      out.tool_calls.push_back(tool_call_from(array[i], fmt::format("{}[{}]", calls_where, i)));
    }
  }
  if (const Json* tools = message.find("tools"); tools != nullptr && !tools->is_null()) {
    out.tools = functions_from_json(*tools, fmt::format("{}.tools", where));
  }
  if (const Json* format = message.find("response_format"); format && format->truthy()) {
    out.response_format = *format;
  }
  return out;
}

Conversation conversation_from_json(const Json& messages) {
  Conversation out;
  const auto& array = array_of(messages, "messages");
  for (std::size_t i = 0; i < array.size(); ++i) {
    out.messages.push_back(message_from_json(array[i], fmt::format("messages[{}]", i)));
  }
  return out;
}

std::vector<Json> functions_from_json(const Json& tools, std::string_view where) {
  std::vector<Json> out;
  for (const Json& tool : array_of(tools, where)) {
    const Json* function = tool.find("function");
    if (function == nullptr || function->as<Json::Object>() == nullptr) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("{}[{}]: has no 'function' object", where, out.size()));
    }
    out.push_back(*function);
  }
  return out;
}

}  // namespace hadal::protocol
