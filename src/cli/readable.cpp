#include "cli/readable.h"

#include <fmt/format.h>

#include "io/utf8.h"

namespace hadal::cli {

std::string readable(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const io::Utf8Scan scan = io::scan_utf8(bytes);
    const std::string_view part = bytes.substr(0, scan.nbytes);
    const auto c = static_cast<unsigned char>(part[0]);
    if (part == "\n") {
      out += "\\n";
    } else if (part == "\t") {
      out += "\\t";
    } else if (part == "\r") {
      out += "\\r";
    } else if (part == "\\") {
      out += "\\\\";
    } else if (scan.status == io::Utf8Status::valid && c >= 0x20 && c != 0x7f) {
      out += part;
    } else {
      for (const char b : part) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(b));
    }
    bytes.remove_prefix(scan.nbytes);
  }
  return out;
}

}  // namespace hadal::cli
