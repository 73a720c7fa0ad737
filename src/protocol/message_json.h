// Messages in the official JSON form, which is OpenAI's with a few keys more.
#pragma once

#include <vector>

#include "protocol/json_text.h"
#include "protocol/message.h"

namespace hadal::protocol {

// One message: role, content (text, null or a list of parts), reasoning_content, tool_calls,
// tool_call_id, tools, response_format, task, wo_eos (or prefix); unknown keys are ignored.
// Parts of a list are joined by a blank line; what is not text becomes "[Unsupported TYPE]" in a
// tool result and is refused elsewhere. Arguments that are an object instead of text are printed.
// Throws Error{invalid_argument} that begins with `where`.
// Source: serving notes §1.2, §1.6, §1.7.
[[nodiscard]] Message message_from_json(const Json& message, std::string_view where = "message");

// `messages` is the array of a request.
[[nodiscard]] Conversation conversation_from_json(const Json& messages);

// The `function` objects of a request's `tools`: [{"type": "function", "function": {...}}, ...].
[[nodiscard]] std::vector<Json> functions_from_json(const Json& tools,
                                                    std::string_view where = "tools");

}  // namespace hadal::protocol
