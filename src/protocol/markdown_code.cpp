#include "protocol/markdown_code.h"

namespace hadal::protocol {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}

}  // namespace

void MarkdownCode::feed(std::string_view text) {
  for (const char c : text) feed(c);
}

bool MarkdownCode::in_code_after(std::string_view separator) const {
  MarkdownCode ahead = *this;
  ahead.feed(separator);
  ahead.feed('<');  // ends a run of backticks
  return ahead.fence_char_ != 0 || ahead.inline_ != 0;
}

// A run of ` or ~ at the start of a line is over: does it open a fence, close one, or neither?
void MarkdownCode::end_opening_run(char next) {
  phase_ = Phase::body;
  const std::size_t run = run_;
  run_ = 0;
  if (fence_char_ != 0) {
    if (run_char_ == fence_char_ && run >= fence_ && (is_blank(next) || next == '\n')) {
      phase_ = Phase::tail;  // closes the fence if only blanks follow
    }
  } else if (run >= 3) {
    fence_char_ = run_char_, fence_ = run;
  } else if (run_char_ == '`') {
    inline_ = run;
  }
}

void MarkdownCode::feed(char c) {
  if (phase_ == Phase::opening_run && c != run_char_) end_opening_run(c);
  if (c == '\n') {
    if (phase_ == Phase::tail) fence_char_ = 0;
    phase_ = Phase::indent;
    indent_ = run_ = inline_ = 0;
    return;
  }
  switch (phase_) {
    case Phase::indent:
      if (c == ' ' && indent_ < 3) {
        ++indent_;
      } else if (c == '`' || c == '~') {
        phase_ = Phase::opening_run;
        run_char_ = c, run_ = 1;
      } else {
        phase_ = Phase::body;
      }
      break;
    case Phase::opening_run:
      ++run_;
      break;
    case Phase::tail:
      if (!is_blank(c)) phase_ = Phase::body;
      break;
    case Phase::body:
      if (fence_char_ != 0) break;
      if (c == '`') {
        ++run_;
      } else if (run_ > 0) {
        if (inline_ == 0) {
          inline_ = run_;
        } else if (inline_ == run_) {
          inline_ = 0;
        }
        run_ = 0;
      }
      break;
  }
}

}  // namespace hadal::protocol
