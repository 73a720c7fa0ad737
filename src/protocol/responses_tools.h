// Tools of the Responses API: functions, freeform tools and groups of both, all of which the model
// sees as functions.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "protocol/api_fields.h"

namespace hadal::protocol {

// A tool as its client named it.
struct ResponsesTool {
  std::string name = {};
  std::string name_space = {};  // of the group; empty for none
  bool is_custom = false;       // called with one text instead of arguments
};

// The name under which the model sees a tool of a group: "group__tool".
[[nodiscard]] std::string flattened_name(std::string_view name_space, std::string_view name);

// From the names that the model sees. `tools` are a request's, which has been parsed; null for
// none.
[[nodiscard]] std::map<std::string, ResponsesTool> responses_tools(const Json* tools);

// Reads `tools`, `tool_choice` and `parallel_tool_calls`. Tools that would run on the server are
// refused.  Source: serving notes §4.9.
void read_responses_tools(Fields& body, ApiRequest& request);

// Arguments of a freeform tool's function: {"input": TEXT}, and back. Text that is no such object
// is the input itself.
[[nodiscard]] std::string custom_arguments(std::string_view input);
[[nodiscard]] std::string custom_input(std::string_view arguments);

}  // namespace hadal::protocol
