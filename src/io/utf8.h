// UTF-8 at the edges: is this text valid, and how does a stream of token bytes become text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hadal::io {

enum class Utf8Status : std::uint8_t {
  valid,       // one whole character
  incomplete,  // the text ends inside a character that more bytes could finish
  invalid      // no bytes appended could make this a character
};

// What stands at the beginning of a text: a character, or the longest ill-formed prefix that is to
// be replaced as one (the Unicode Standard's "maximal subpart"). Overlong forms, surrogates and
// anything above U+10FFFF are invalid at the byte that gives them away.
struct Utf8Scan {
  Utf8Status status;
  std::size_t nbytes;  // of the character or of the ill-formed prefix; at least 1
};

// `text` must not be empty. Source: The Unicode Standard 15.0, §3.9, tables 3-7 and 3-8.
[[nodiscard]] Utf8Scan scan_utf8(std::string_view text);

// The offset at which the first ill-formed (or cut off) sequence begins; nothing when there is
// none.
[[nodiscard]] std::optional<std::size_t> find_invalid_utf8(std::string_view text);

// Turns bytes that arrive in any portions into valid UTF-8. An unfinished character at the end is
// held back until its rest arrives; bytes that can no longer become a character come out as one
// U+FFFD per ill-formed prefix. However the bytes are cut, the concatenation of what is returned is
// the same. Not for use by two threads at once.
class Utf8Stream {
 public:
  // What is certain after these bytes.
  [[nodiscard]] std::string feed(std::string_view bytes);
  // U+FFFD if an unfinished character was held back, else nothing; the stream starts afresh.
  [[nodiscard]] std::string finish();

 private:
  std::string held_;  // an incomplete character, at most 3 bytes
};

}  // namespace hadal::io
