// A conversation as the text that the model reads.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "io/text_segment.h"
#include "protocol/message.h"
#include "protocol/segment_writer.h"

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
  // The last message is an assistant's prefix that ends inside its reasoning: nothing closes it.
  // Only in thinking mode.  Source: serving notes §4.8 (policy).
  bool continues_reasoning = false;
};

// Told where things stand in the text while it is rendered. `text` holds what was rendered so far
// and not taken out of it yet.
class RenderListener {
 public:
  virtual ~RenderListener() = default;
  // messages[index], an assistant's, begins: behind its header, where it has one.
  virtual void answer_text_begins(std::size_t /*index*/, const SegmentWriter& /*text*/) {}
  // messages[index] is complete (of a user turn: what this message adds to it).
  virtual void message_rendered(std::size_t index, const SegmentWriter& text) = 0;
  // The think tag of an answer's header comes next.
  virtual void header_begins(const SegmentWriter& text) = 0;
  // The header stands, and messages[index], an assistant's, follows it; `mode` is chat where the
  // header closes the reasoning at once. True if the listener has put the whole answer with its
  // end-of-sentence token in place, so that it is left out here.
  virtual bool answer_begins(std::size_t index, ThinkingMode mode, SegmentWriter& text) = 0;
};

// The prompt, from the beginning-of-sentence token to the header of the answer (or to the end of
// the last assistant message). Renders any list that the published encoder renders; see validate()
// for what a server should refuse first.
// Throws Error{invalid_argument} on an empty developer message and on arguments that are JSON but
// no object. Source: DeepSeek-V4 §5.1 and the official encoder; serving notes §1.2-§1.9.
[[nodiscard]] std::vector<io::TextSegment> render(const Conversation& conversation,
                                                  const RenderOptions& options);

// The same; `listener` gets to know the places. It sees segments as they are without
// trust_special_tokens.
[[nodiscard]] std::vector<io::TextSegment> render(const Conversation& conversation,
                                                  const RenderOptions& options,
                                                  RenderListener* listener);

// The same as one string, with the guard between trusted and untrusted text lost.
[[nodiscard]] std::string render_text(const Conversation& conversation,
                                      const RenderOptions& options);

}  // namespace hadal::protocol
