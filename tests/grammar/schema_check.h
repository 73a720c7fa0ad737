// A plain reading of JSON Schema, to judge what grammars let through: only what they enforce.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace hadal::grammar {

class SchemaCheck {
 public:
  // Of wide floats: a number may have three digits of exponent.
  using Json = nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool,
                                    std::int64_t, std::uint64_t, long double>;
  explicit SchemaCheck(const std::string& schema) : root_(Json::parse(schema)) {}

  [[nodiscard]] bool valid(const Json& value) const { return valid(value, root_); }

 private:
  static bool is_type(const Json& v, const std::string& type) {
    // Integers of more than 64 bits are read as floats.
    if (type == "integer")
      return v.is_number() && std::trunc(v.get<long double>()) == v.get<long double>();
    if (type == "number") return v.is_number();
    if (type == "string") return v.is_string();
    if (type == "boolean") return v.is_boolean();
    if (type == "null") return v.is_null();
    return type == "object" ? v.is_object() : v.is_array();
  }
  static std::size_t length(const std::string& text) {
    std::size_t n = 0;
    for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
    return n;
  }

  [[nodiscard]] bool valid(const Json& v, const Json& s) const {
    if (s.is_boolean()) return s.get<bool>();
    for (const auto& [word, arg] : s.items()) {
      if (!holds(v, s, word, arg)) return false;
    }
    return true;
  }

  [[nodiscard]] bool holds(const Json& v, const Json& s, const std::string& word,
                           const Json& arg) const {
    if (word == "$ref") {
      return valid(v, root_.at(Json::json_pointer(arg.get<std::string>().substr(1))));
    }
    if (word == "type") {
      if (!arg.is_array()) return is_type(v, arg.get<std::string>());
      return std::any_of(arg.begin(), arg.end(),
                         [&](const Json& t) { return is_type(v, t.get<std::string>()); });
    }
    if (word == "enum") return std::find(arg.begin(), arg.end(), v) != arg.end();
    if (word == "const") return v == arg;
    if (word == "allOf") {
      return std::all_of(arg.begin(), arg.end(), [&](const Json& p) { return valid(v, p); });
    }
    if (word == "anyOf" || word == "oneOf") {
      return std::any_of(arg.begin(), arg.end(), [&](const Json& p) { return valid(v, p); });
    }
    if (v.is_object()) return holds_of_object(v, s, word, arg);
    if (v.is_array()) return holds_of_array(v, s, word, arg);
    if (v.is_string()) {
      if (word == "minLength") return length(v.get<std::string>()) >= arg.get<std::size_t>();
      if (word == "maxLength") return length(v.get<std::string>()) <= arg.get<std::size_t>();
    }
    if (v.is_number()) {
      if (word == "minimum") return v.get<long double>() >= arg.get<long double>();
      if (word == "maximum") return v.get<long double>() <= arg.get<long double>();
      if (word == "exclusiveMinimum") return v.get<long double>() > arg.get<long double>();
      if (word == "exclusiveMaximum") return v.get<long double>() < arg.get<long double>();
    }
    return true;
  }

  [[nodiscard]] bool holds_of_object(const Json& v, const Json& s, const std::string& word,
                                     const Json& arg) const {
    if (word == "required") {
      return std::all_of(arg.begin(), arg.end(),
                         [&](const Json& name) { return v.contains(name.get<std::string>()); });
    }
    const Json none = Json::object();
    const Json& declared = s.contains("properties") ? s["properties"] : none;
    for (const auto& [name, member] : v.items()) {
      if (word == "properties" && declared.contains(name) && !valid(member, declared[name])) {
        return false;
      }
      if (word == "additionalProperties" && !declared.contains(name) && !valid(member, arg)) {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] bool holds_of_array(const Json& v, const Json& s, const std::string& word,
                                    const Json& arg) const {
    if (word == "minItems") return v.size() >= arg.get<std::size_t>();
    if (word == "maxItems") return v.size() <= arg.get<std::size_t>();
    const std::size_t n_prefix = s.contains("prefixItems") ? s["prefixItems"].size() : 0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      if (word == "prefixItems" && i < arg.size() && !valid(v[i], arg[i])) return false;
      if (word == "items" && i >= n_prefix && !valid(v[i], arg)) return false;
    }
    return true;
  }

  Json root_;
};

}  // namespace hadal::grammar
