// What comes out of the DSML parser, and what it is told beforehand.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "protocol/json_text.h"
#include "protocol/message.h"

namespace hadal::protocol {

enum class DsmlMode : std::uint8_t {
  strict,   // the published parser: well-formed output or an error
  tolerant  // strict plus the recoveries R1-R19; what is served
};

// A tool call written before the reasoning was closed (R6).
enum class DsmlInReasoning : std::uint8_t {
  implicit_end,  // ends the reasoning when it calls a declared tool
  text           // is reasoning
};

// What the parser wants to know of a tool.
struct DeclaredTool {
  struct Property {
    std::string name;
    std::string type;  // of its schema where that is one word, else empty
  };
  std::string name;
  std::vector<Property> properties;

  [[nodiscard]] const Property* find(std::string_view property) const;
};

// From a request's function object: name and parameters.properties, as far as they are there.
[[nodiscard]] DeclaredTool declared_tool(const Json& function);
[[nodiscard]] std::vector<DeclaredTool> declared_tools(const std::vector<Json>& functions);

struct DsmlOptions {
  DsmlMode mode = DsmlMode::tolerant;
  ThinkingMode thinking_mode = ThinkingMode::thinking;  // whether the header opened reasoning
  ChatProfile profile = ChatProfile::v4_preview;
  DsmlInReasoning in_reasoning = DsmlInReasoning::implicit_end;
  // Tolerant mode reads no calls without tools (none in the request, or tool_choice "none").
  // Strict mode ignores them, as the published parser does.
  std::vector<DeclaredTool> tools;
};

// Why the text is not what the grammar wants. Source: names are ours; the rejections of strict
// mode are those of the official parser.
enum class DsmlError : std::uint8_t {
  missing_think_end,  // reasoning never closed
  missing_eos,        // an answer without calls must end with the end-of-sentence token
  special_in_text,    // a control token in content or reasoning
  bad_block_glue,     // something else than ">\n" between the tags around invokes
  bad_invoke_header,
  bad_parameter,       // header of a parameter, or its closer missing
  bad_parameter_glue,  // something else than ">\n" between the tags around parameters
  duplicate_parameter,
  text_after_block,
  trailing_text  // behind the end-of-sentence token
};
[[nodiscard]] const char* to_string(DsmlError error);

// Deltas hold whole UTF-8 characters. Deltas of one kind (and call) that follow each other may be
// joined; joined, they do not depend on how the text was cut.
struct ReasoningDelta {
  std::string text;
  bool operator==(const ReasoningDelta&) const = default;
};
struct ContentDelta {
  std::string text;
  bool operator==(const ContentDelta&) const = default;
};
// `index` counts the calls of the turn from 0. The id of a call is its issuer's business.
struct ToolCallBegin {
  std::size_t index;
  std::string name;
  bool operator==(const ToolCallBegin&) const = default;
};
// A piece of the JSON text of the arguments; all pieces together are an object.
struct ArgumentDelta {
  std::size_t index;
  std::string text;
  bool operator==(const ArgumentDelta&) const = default;
};
// A call without this was cut off and must not be executed.
struct ToolCallEnd {
  std::size_t index;
  bool operator==(const ToolCallEnd&) const = default;
};
// The turn cannot be read from here on. `text` is the raw text of the call that failed, or of what
// stands outside calls, up to the end of the turn; it arrives in pieces like a delta.
struct Malformed {
  DsmlError error;
  std::string text;
  bool operator==(const Malformed&) const = default;
};

using DsmlEvent = std::variant<ReasoningDelta, ContentDelta, ToolCallBegin, ArgumentDelta,
                               ToolCallEnd, Malformed>;

// How often each rule of tolerant mode was needed; index 1 to 19 is R1 to R19, 0 is unused.
// Source: serving notes §1.7.3.
using DsmlRecoveries = std::array<std::uint32_t, 20>;

}  // namespace hadal::protocol
