// A conversation as the text that the model reads.
#pragma once

#include <string>
#include <vector>

#include "io/text_segment.h"
#include "protocol/message.h"

namespace hadal::protocol {

struct RenderOptions {
  ThinkingMode thinking_mode = ThinkingMode::thinking;
  // The text put before the conversation, in thinking mode; none is no text.
  ReasoningEffort effort = ReasoningEffort::none;
  ChatProfile profile = ChatProfile::v4_preview;
  // Leave out the reasoning of answers before the last user message. Tools keep all of it.
  bool drop_thinking = true;
  // Let a history with tool calls keep its reasoning although this request brings no tools. The
  // published encoder does not; the published API asks for it.
  bool tool_history_keeps_thinking = true;
  // Mark everything trusted, as the published encoder does: special tokens in a message become
  // control tokens.
  bool trust_special_tokens = false;
};

// The prompt, from the beginning-of-sentence token to the header of the answer (or to the end of
// the last assistant message). Renders any list that the published encoder renders; see validate()
// for what a server should refuse first.
// Throws Error{invalid_argument} on an empty developer message and on arguments that are JSON but
// no object. Source: DeepSeek-V4 §5.1 and the official encoder; serving notes §1.2-§1.9.
[[nodiscard]] std::vector<io::TextSegment> render(const Conversation& conversation,
                                                  const RenderOptions& options);

// The same as one string, with the guard between trusted and untrusted text lost.
[[nodiscard]] std::string render_text(const Conversation& conversation,
                                      const RenderOptions& options);

}  // namespace hadal::protocol
