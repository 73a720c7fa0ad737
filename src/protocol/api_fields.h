// Reading the members of a request's objects: what is there, of which type, in which range; what is
// wrong is said with the member's path, as "messages[2].content".
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/api.h"

namespace hadal::protocol {

// Throws ApiException: 400, invalid_request_error, "PATH: WHY", and the path as `param`. An empty
// path is the body itself.
[[noreturn]] void refuse_field(std::string_view path, std::string_view why);
// "found 17, wanted WANTED": scalars as they are (long ones cut), the rest by the name of its type.
[[noreturn]] void refuse_value(std::string_view path, const Json& found, std::string_view wanted);

struct IntegerRange {
  std::int64_t min = std::numeric_limits<std::int64_t>::min();
  std::int64_t max = std::numeric_limits<std::int64_t>::max();
};
struct NumberRange {
  double min, max;
  bool without_min = false;  // (min, max] instead of [min, max]
};

// One value of a known type. The references live as long as the value does.
[[nodiscard]] const std::string& text_of(const Json& value, std::string_view path);
[[nodiscard]] bool bool_of(const Json& value, std::string_view path);
[[nodiscard]] std::int64_t integer_of(const Json& value, std::string_view path, IntegerRange range);
[[nodiscard]] double number_of(const Json& value, std::string_view path, NumberRange range);
[[nodiscard]] const Json::Array& array_of(const Json& value, std::string_view path);
[[nodiscard]] const Json::Object& object_of(const Json& value, std::string_view path);

template <class T>
struct NamedValue {
  std::string_view name;
  T value;
};

// The members of one object, each read by its name. A null is the same as a missing member. What
// was never asked for is unknown. Borrows the object.
class Fields {
 public:
  static constexpr std::size_t kMaxMembers = 256;

  // Refuses what is not an object, and an object with more members than any API has.
  Fields(const Json& object, std::string path);

  // The path of a member, for messages about it.
  [[nodiscard]] std::string path(std::string_view key) const;
  [[nodiscard]] const std::string& path() const { return path_; }

  // Null when there is none.
  [[nodiscard]] const Json* find(std::string_view key);
  [[nodiscard]] const Json& required(std::string_view key);

  [[nodiscard]] const std::string* text(std::string_view key);
  [[nodiscard]] const std::string& required_text(std::string_view key);  // may be empty
  [[nodiscard]] std::optional<bool> boolean(std::string_view key);
  [[nodiscard]] std::optional<std::int64_t> integer(std::string_view key, IntegerRange range = {});
  [[nodiscard]] std::optional<double> number(std::string_view key, NumberRange range);
  [[nodiscard]] const Json::Array* array(std::string_view key);
  [[nodiscard]] std::optional<Fields> object(std::string_view key);

  // One of a few words.
  template <class T, std::size_t N>
  [[nodiscard]] std::optional<T> word(std::string_view key, const NamedValue<T> (&names)[N]) {
    const std::string* found = text(key);
    if (found == nullptr) return std::nullopt;
    std::string known;
    for (const NamedValue<T>& entry : names) {
      if (entry.name == *found) return entry.value;
      known.append(known.empty() ? "" : ", ").append(entry.name);
    }
    refuse_value(path(key), *find(key), "one of " + known);
  }

  // Members that are known and have no effect here.
  void ignore(std::initializer_list<std::string_view> keys);
  // Throws for a member that is there, not null, and not false: the answer would not be what was
  // asked for.
  void refuse_if_given(std::string_view key, std::string_view why);

  // Adds the names of the members that nobody asked for, "tools[].x" for tools[3].x, each once,
  // cut to a sane length and number.
  void unknown(std::vector<std::string>& out) const;

 private:
  const Json* object_;
  std::string path_;
  std::vector<std::string_view> known_;
};

// `path` with every index left out: "messages[].content".
[[nodiscard]] std::string without_indices(std::string_view path);

}  // namespace hadal::protocol
