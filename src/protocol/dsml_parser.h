// Turns a completion into reasoning, content and tool calls while it is being generated.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/utf8.h"
#include "protocol/dsml_event.h"

namespace hadal::protocol {

class DsmlGrammar;
class DsmlText;

enum class EndOfTurn : std::uint8_t {
  as_fed,  // what was fed is all there is: without an end-of-sentence token the turn was cut off
  eos      // the end-of-sentence token was sampled, and not fed as text
};

// Turns decoded text into events as soon as they are certain: what may yet become a tag is held
// back, all else is passed on at once. Any split of the text, down to single bytes, yields the same
// events, deltas joined. Takes time linear in the text. Not for use by two threads at once.
//
// The text is what follows the answer header of the prompt, special tokens included as their
// names. Malformed output is an event, never an exception; nothing is dropped that a rule of
// DsmlRecoveries does not name.
// Source: DeepSeek-V4 §5.1 (tool schema); serving notes §1.7, §1.8.
class DsmlParser {
 public:
  using Event = DsmlEvent;

  explicit DsmlParser(DsmlOptions options);
  ~DsmlParser();
  DsmlParser(DsmlParser&&) noexcept;
  DsmlParser& operator=(DsmlParser&&) noexcept;

  // Appends to `out` what is certain after these bytes. `out` may hold earlier events; a delta that
  // continues the last of them is joined to it.
  void feed(std::string_view bytes, std::vector<Event>& out);
  // End of the turn: what was held back is passed on, closed or reported. Nothing may follow.
  void finish(std::vector<Event>& out, EndOfTurn end = EndOfTurn::as_fed);

  // So far.
  [[nodiscard]] const DsmlRecoveries& recoveries() const;

 private:
  void run(std::vector<Event>& out);

  std::string eos_;
  io::Utf8Stream utf8_;
  std::unique_ptr<DsmlText> text_;
  std::unique_ptr<DsmlGrammar> grammar_;
};

// The turn as one message.
struct ParsedMessage {
  std::string content;
  std::string reasoning_content;
  std::vector<ToolCall> tool_calls;  // complete ones, without ids
  bool call_cut_off = false;         // a call was begun and not ended; it is left out
  // The first Malformed event. In tolerant mode its text is content too (unless it stands behind
  // the end of the turn); in strict mode the other fields hold what came before it.
  std::optional<DsmlError> error;
  std::string malformed_text;
  DsmlRecoveries recoveries{};
};

// Gathers the events of one turn.
class MessageBuilder {
 public:
  explicit MessageBuilder(DsmlMode mode) : mode_(mode) {}
  void add(const DsmlEvent& event);
  [[nodiscard]] ParsedMessage finish();

 private:
  DsmlMode mode_;
  ParsedMessage message_;
  std::vector<bool> ended_;  // by call
};

// The stream parser, fed once.
[[nodiscard]] ParsedMessage parse_completion(std::string_view text, const DsmlOptions& options);

}  // namespace hadal::protocol
