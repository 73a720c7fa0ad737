// Tools, the choice among them, and schemas that answers must follow.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "protocol/api_fields.h"

namespace hadal::protocol {

inline constexpr std::size_t kMaxTools = 128;

// Adds one function object {"name", "description", "parameters", "strict"}, which stands at `path`
// (that of the object itself). Refuses names that are not [A-Za-z0-9_.:-]{1,64} or taken, wrong
// types, too many tools, and under strict schemas what check_strict_schema() refuses.
// Source: serving notes §4.5.
void add_tool(ApiRequest& request, const Json& function, const std::string& path);
// Adds [{"type": "function", "function": {...}}, ...].
void add_function_tools(ApiRequest& request, const Json& tools, const std::string& path);

// `names` are the tools that may be called, all when empty; each must be declared. Under none the
// tools of the request are taken away.
void set_tool_choice(ApiRequest& request, ToolMode mode, std::vector<std::string> names,
                     const std::string& path);
// The name, as the model sees it, in an object that names a tool: {"type": "function", "function":
// {"name": ...}}, or with the name beside the type.
[[nodiscard]] std::string chosen_function(const Json& choice, const std::string& path);
// OpenAI's tool_choice, as chat completions and as responses spell it: a word, an object that
// `chosen_name` understands, or {"type": "allowed_tools", ...}; null `choice` is the default. Call
// it when all tools are added.
void read_tool_choice(ApiRequest& request, const Json* choice, const std::string& path,
                      std::string (*chosen_name)(const Json&,
                                                 const std::string&) = chosen_function);

// An object with name, schema and strict, as response_format and text.format have it.
[[nodiscard]] AnswerFormat read_json_schema(Fields& fields);

// Refuses a schema that DeepSeek's strict mode does not take, naming the keyword or property: only
// the types, enum, const, anyOf, $ref to inside, and objects that require all of their properties
// and allow no others. `schema` must be of type object. Source: serving notes §4.5.
void check_strict_schema(const Json& schema, const std::string& path);

}  // namespace hadal::protocol
