// Where a Markdown text is code, as far as a reader of a stream can know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hadal::protocol {

// Follows fences (``` and ~~~, three or more at the start of a line, indented by up to three
// spaces) and inline code. Inline code that is not closed ends with its line: a stray backtick must
// not switch recoveries off for the rest of an answer. Plain data, copied to look ahead.
// Source: CommonMark 0.31 §4.5, §6.1, cut to what R18 needs.
class MarkdownCode {
 public:
  void feed(std::string_view text);

  // Whether a tag that follows the text, with `separator` between, would be inside code.
  [[nodiscard]] bool in_code_after(std::string_view separator) const;
  [[nodiscard]] bool at_line_start() const { return phase_ == Phase::indent && indent_ == 0; }

 private:
  enum class Phase : std::uint8_t { indent, opening_run, tail, body };

  void feed(char c);
  void end_opening_run(char next);

  Phase phase_ = Phase::indent;
  std::size_t indent_ = 0;
  char run_char_ = 0;       // of the run of backticks or tildes at the cursor
  std::size_t run_ = 0;     // its length
  char fence_char_ = 0;     // of the open fence; 0 outside
  std::size_t fence_ = 0;   // the length that closes it
  std::size_t inline_ = 0;  // the length of the backtick run that opened inline code; 0 outside
};

}  // namespace hadal::protocol
