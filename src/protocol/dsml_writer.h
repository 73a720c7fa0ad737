// Tool calls as the model writes them.
#pragma once

#include <string>
#include <vector>

#include "protocol/chat_format.h"
#include "protocol/message.h"
#include "protocol/segment_writer.h"

namespace hadal::protocol {

// Writes the canonical DSML block, without the blank line that precedes it. Parameters stand in the
// order of the arguments object; strings raw, all else as JSON. Nothing is escaped: a value that
// holds its own closer cannot be represented, and is written as it is.
// Arguments that are not JSON become one string parameter "arguments"; empty or null ones none.
// Throws Error{invalid_argument} when the arguments are JSON but not an object.
// Source: serving notes §1.7.1.
void write_tool_calls(const std::vector<ToolCall>& calls, const ChatFormat& format,
                      SegmentWriter& out);

// The same as one string.
[[nodiscard]] std::string tool_calls_text(const std::vector<ToolCall>& calls,
                                          const ChatFormat& format);

}  // namespace hadal::protocol
