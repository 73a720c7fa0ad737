// A run of prompt text and who wrote it.
#pragma once

#include <string>

namespace hadal::io {

// A rendered prompt is a list of these. Only the template's own text may become control tokens;
// what a client, a tool or a schema wrote is untrusted and stays ordinary text.
// Source: serving notes §1.9 (injection guard).
struct TextSegment {
  std::string text;
  bool trusted = true;
};

}  // namespace hadal::io
