// Any text as a completion: read without a crash, with the same events however it is cut, and with
// arguments that are JSON objects.
//
// The first byte says how it is read (bits of kStrict ... kEos), the second how it is cut; the rest
// is the completion.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/utf8.h"
#include "protocol/dsml_parser.h"
#include "protocol/json_text.h"

namespace {

using namespace hadal;
using namespace hadal::protocol;

enum : unsigned { kStrict = 1, kThinking = 2, kTools = 4, kReasoningIsText = 8, kEos = 16 };

DsmlOptions options_of(unsigned flags) {
  DsmlOptions options;
  options.mode = (flags & kStrict) != 0 ? DsmlMode::strict : DsmlMode::tolerant;
  options.thinking_mode = (flags & kThinking) != 0 ? ThinkingMode::thinking : ThinkingMode::chat;
  if ((flags & kReasoningIsText) != 0) options.in_reasoning = DsmlInReasoning::text;
  if ((flags & kTools) != 0) {
    options.tools = {{"f", {}}, {"ls", {{"path", "string"}, {"n", "integer"}}}};
  }
  return options;
}

struct Reading {
  std::vector<DsmlEvent> events;
  DsmlRecoveries recoveries;
};

// Fed in pieces of 1 to `max_piece` bytes; 0 is all at once.
Reading read(std::string_view text, unsigned flags, std::size_t max_piece) {
  DsmlParser parser(options_of(flags));
  Reading reading;
  std::uint32_t random = 12345;
  while (!text.empty()) {
    random = random * 1664525 + 1013904223;
    const std::size_t n = max_piece == 0 ? text.size() : 1 + (random >> 16) % max_piece;
    parser.feed(text.substr(0, n), reading.events);
    text.remove_prefix(std::min(n, text.size()));
  }
  parser.finish(reading.events, (flags & kEos) != 0 ? EndOfTurn::eos : EndOfTurn::as_fed);
  reading.recoveries = parser.recoveries();
  return reading;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const unsigned flags = data[0];
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);

  const Reading whole = read(text, flags, 0);
  for (const std::size_t max_piece : {std::size_t{1}, std::size_t{2} + data[1]}) {
    const Reading pieces = read(text, flags, max_piece);
    HADAL_CHECK(pieces.events == whole.events);
    HADAL_CHECK(pieces.recoveries == whole.recoveries);
  }

  MessageBuilder builder(options_of(flags).mode);
  for (const DsmlEvent& event : whole.events) builder.add(event);
  const ParsedMessage message = builder.finish();
  HADAL_CHECK(!io::find_invalid_utf8(message.content));
  HADAL_CHECK(!io::find_invalid_utf8(message.reasoning_content));
  for (const ToolCall& call : message.tool_calls) {
    HADAL_CHECK(!io::find_invalid_utf8(call.arguments));
    HADAL_CHECK(call.arguments.starts_with('{') && call.arguments.ends_with('}'));
    // The published parser pastes what the model calls JSON.
    HADAL_CHECK((flags & kStrict) != 0 || is_json(call.arguments));
  }
  return 0;
}
