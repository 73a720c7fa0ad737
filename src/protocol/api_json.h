// JSON as it goes over the wire: compact, and written front to back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hadal::protocol {

// Writes one document, member after member; sets the commas. Who calls it sees to the nesting.
// Line separators of Unicode (U+0085, U+2028, U+2029) are escaped: some readers of event streams
// end a line there.
class JsonWriter {
 public:
  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& text(std::string_view value);  // UTF-8
  JsonWriter& integer(std::int64_t value);
  JsonWriter& number(double value);  // finite
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  // A document that is JSON already.
  JsonWriter& raw(std::string_view json);

  JsonWriter& member(std::string_view name, std::string_view value) {
    return key(name).text(value);
  }
  JsonWriter& member(std::string_view name, const std::string& value) {
    return key(name).text(value);
  }
  JsonWriter& member(std::string_view name, const char* value) { return key(name).text(value); }
  JsonWriter& member(std::string_view name, std::int64_t value) { return key(name).integer(value); }

  [[nodiscard]] const std::string& written() const { return out_; }
  [[nodiscard]] std::string take() { return std::move(out_); }

 private:
  JsonWriter& open(char bracket);
  JsonWriter& close(char bracket);
  void separate();

  std::string out_;
  bool needs_comma_ = false;
};

}  // namespace hadal::protocol
