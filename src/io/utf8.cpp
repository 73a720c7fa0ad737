#include "io/utf8.h"

#include <cstring>

namespace hadal::io {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// The number of leading bytes that are ASCII, eight at a time.
std::size_t ascii_prefix(std::string_view text) {
  std::size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

Utf8Scan scan_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Status::valid, 1};

  // Only the second byte has a range of its own; it keeps out overlong forms, surrogates and what
  // lies beyond U+10FFFF.
  std::size_t n;
  unsigned low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    n = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    n = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    n = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Status::invalid, 1};
  }
  for (std::size_t i = 1; i < n; ++i) {
    if (i == text.size()) return {Utf8Status::incomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Status::invalid, i};
    low = 0x80, high = 0xBF;
  }
  return {Utf8Status::valid, n};
}

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (true) {
    at += ascii_prefix(text.substr(at));
    if (at == text.size()) return std::nullopt;
    const Utf8Scan scan = scan_utf8(text.substr(at));
    if (scan.status != Utf8Status::valid) return at;
    at += scan.nbytes;
  }
}

std::string Utf8Stream::feed(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Scan scan = scan_utf8(rest);
    if (scan.status == Utf8Status::incomplete) break;
    out += scan.status == Utf8Status::valid ? rest.substr(0, scan.nbytes) : kReplacement;
    rest.remove_prefix(scan.nbytes);
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::finish() {
  const bool unfinished = !held_.empty();
  held_.clear();
  return std::string(unfinished ? kReplacement : std::string_view());
}

}  // namespace hadal::io
