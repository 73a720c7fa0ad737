// What a generation of the model expects to read, as a table: another generation is another table.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/message.h"

namespace hadal::protocol {

// A name that clients send for an effort, and the level that it means.
struct EffortName {
  std::string_view name;
  ReasoningEffort level;
};

// Every string has static storage. Names in angle brackets are single tokens of the vocabulary
// (so is dsml_mark) except the tool_result pair, which is plain text.
// Source: official encoders of the April and July 2026 checkpoints; serving notes §1.1-§1.7.
struct ChatFormat {
  std::string_view bos, eos, user, assistant, latest_reminder;
  std::string_view think_open, think_close;
  std::string_view tool_result_open, tool_result_close;

  // DSML tags are '<' or "</", the mark, a name, then attributes and '>'.
  std::string_view dsml_mark;
  std::string_view calls_tag, invoke_tag, parameter_tag;

  // Blocks of system and developer text; the schemas, one a line, stand between the first two.
  std::string_view tools_before_schemas, tools_after_schemas;
  std::string_view response_format;

  std::array<std::string_view, 4> effort_text;  // by ReasoningEffort; follows bos
  std::span<const EffortName> effort_names;
  std::array<std::string_view, 6> task_token;  // by Task
};

[[nodiscard]] const ChatFormat& chat_format(ChatProfile profile);

// The level that a client's word for it means to this generation; an empty word is the API's
// default, high. "none" is a level too: it asks for chat mode. Throws Error{invalid_argument} with
// the accepted words. Source: serving notes §1.4.
[[nodiscard]] ReasoningEffort reasoning_effort_from(std::string_view word, ChatProfile profile);

// Special tokens that end a generation: end of sentence, and the turn headers, which are runaway
// output inside an answer. Source: serving notes §1.1.
[[nodiscard]] std::vector<std::string> default_stop_tokens(ChatProfile profile);

}  // namespace hadal::protocol
