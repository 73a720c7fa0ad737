// JSON strings, written.
#pragma once

#include <string>
#include <string_view>

namespace hadal::io {

// Appends `text`, which is UTF-8, as the inside of a JSON string: quotes, backslashes and controls
// below U+0020 escaped, all else as it is. Any cut between characters gives the same bytes.
void append_json_escaped(std::string& out, std::string_view text);

}  // namespace hadal::io
