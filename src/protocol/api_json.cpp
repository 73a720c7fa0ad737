#include "protocol/api_json.h"

#include <fmt/format.h>

#include "protocol/json_text.h"

namespace hadal::protocol {
namespace {

// Where the next line separator of Unicode that is no ASCII character begins.
std::size_t find_separator(std::string_view text, std::size_t from) {
  for (std::size_t i = from; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\xC2' && text.substr(i, 2) == "\xC2\x85") return i;
    if (c == '\xE2' && (text.substr(i, 3) == "\xE2\x80\xA8" || text.substr(i, 3) == "\xE2\x80\xA9"))
      return i;
  }
  return std::string_view::npos;
}

}  // namespace

void JsonWriter::separate() {
  if (needs_comma_) out_ += ',';
  needs_comma_ = true;
}

JsonWriter& JsonWriter::open(char bracket) {
  separate();
  out_ += bracket;
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
  out_ += bracket;
  needs_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  text(name);
  out_ += ':';
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::text(std::string_view value) {
  separate();
  out_ += '"';
  std::size_t begin = 0;
  for (std::size_t at = find_separator(value, 0); at != std::string_view::npos;
       at = find_separator(value, begin)) {
    append_json_escaped(out_, value.substr(begin, at - begin));
    const bool is_next_line = value[at] == '\xC2';
    out_ += is_next_line ? "\\u0085" : value[at + 2] == '\xA8' ? "\\u2028" : "\\u2029";
    begin = at + (is_next_line ? 2 : 3);
  }
  append_json_escaped(out_, value.substr(begin));
  out_ += '"';
  return *this;
}

JsonWriter& JsonWriter::integer(std::int64_t value) {
  separate();
  out_ += std::to_string(value);
  return *this;
}

JsonWriter& JsonWriter::number(double value) {
  separate();
  out_ += fmt::format("{}", value);
  return *this;
}

JsonWriter& JsonWriter::boolean(bool value) {
  separate();
  out_ += value ? "true" : "false";
  return *this;
}

JsonWriter& JsonWriter::null() {
  separate();
  out_ += "null";
  return *this;
}

JsonWriter& JsonWriter::raw(std::string_view json) {
  separate();
  out_ += json;
  return *this;
}

}  // namespace hadal::protocol
