// protocol: prompts and completions as text, JSON on the way in and out. Knows no engine, no model
// and no token ids.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "io/json_escape.h"

namespace hadal::protocol {

// JSON as the model was trained to see it: members in the order they were written, integers with
// all their digits, and one printed form, that of Python's json.dumps(x, ensure_ascii=False).
// Plain data, copied by value.
class Json {
 public:
  struct Integer {
    std::string digits;  // decimal, with a leading '-' where negative
  };
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;  // no key twice
  using Value = std::variant<std::nullptr_t, bool, Integer, double, std::string, Array, Object>;

  // Deeper documents are refused: values are printed and destroyed recursively.
  static constexpr std::size_t kMaxDepth = 512;

  Json() = default;
  explicit Json(Value v);

  // One JSON document (RFC 8259), whitespace around it allowed. Of a repeated key the last value
  // wins, at the place of the first. Numbers beyond long double (4932 digits) are refused.
  // Throws Error{invalid_argument} that says where and why.
  [[nodiscard]] static Json parse(std::string_view text);
  // The same, with nothing in place of an error.
  [[nodiscard]] static std::optional<Json> try_parse(std::string_view text);

  // As Python prints it: ", " and ": ", members in order, non-ASCII raw, floats in the shortest
  // form that reads back. Numbers beyond double print as Infinity, which is Python's and not JSON.
  // Source: CPython json.encoder, float.__repr__.
  [[nodiscard]] std::string dump() const;

  template <class T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&value);
  }
  [[nodiscard]] bool is_null() const { return value.index() == 0; }
  // The member of that name; null if there is none or this is not an object.
  [[nodiscard]] const Json* find(std::string_view key) const;
  // What Python calls true: not null, false, zero or empty.
  [[nodiscard]] bool truthy() const;
  // "null", "boolean", "number", "string", "array" or "object".
  [[nodiscard]] const char* type_name() const;

  Value value;
};

struct Json::Member {
  std::string key;
  Json value;
};

// Here because it needs the whole Member.
inline Json::Json(Value v) : value(std::move(v)) {}

// Whether `text` is one JSON document, at any depth. Does not build it.
[[nodiscard]] bool is_json(std::string_view text);

using io::append_json_escaped;
// `text` with its quotes.
[[nodiscard]] std::string json_string(std::string_view text);

}  // namespace hadal::protocol
