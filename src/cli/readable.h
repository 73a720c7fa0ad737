#pragma once

#include <string>
#include <string_view>

namespace hadal::cli {

// A token's bytes for a line of a table: what is no printable text is written as \xNN or \n.
[[nodiscard]] std::string readable(std::string_view bytes);

}  // namespace hadal::cli
