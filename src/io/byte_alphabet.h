// The alphabet in which tokenizer.json spells bytes: printable Latin-1 characters stand for
// themselves, the other 68 bytes for U+0100 and up, so that "Ġ" is a space.
// Source: GPT-2's bytes_to_unicode, as Hugging Face's ByteLevel writes it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hadal::io {

// The bytes that `spelling` (valid UTF-8) stands for; nothing if it holds a character outside the
// alphabet, as the names of control tokens do.
[[nodiscard]] std::optional<std::string> bytes_of_spelling(std::string_view spelling);

// The one character that stands for `byte`.
[[nodiscard]] std::string spelling_of_byte(unsigned char byte);

}  // namespace hadal::io
