#include "io/json_section.h"

#include <fmt/format.h>

#include <cmath>

namespace hadal::io {

using Json = nlohmann::json;

std::optional<std::int64_t> JsonSection::integer(const char* key) const {
  const Json* v = get(key);
  if (v == nullptr) return std::nullopt;
  return integer_value(*v, key);
}

std::optional<double> JsonSection::number(const char* key) const {
  const Json* v = get(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_number()) wrong_type(*v, key, "a number");
  return v->get<double>();
}

std::optional<float> JsonSection::f32(const char* key) const {
  const auto v = number(key);
  if (!v) return std::nullopt;
  if (!(std::fabs(*v) <= 1e30)) {
    fail(ErrorCode::invalid_argument,
         fmt::format("{} is {}, beyond what a 32-bit float holds well", path(key), *v));
  }
  return static_cast<float>(*v);
}

std::optional<bool> JsonSection::boolean(const char* key) const {
  const Json* v = get(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_boolean()) wrong_type(*v, key, "true or false");
  return v->get<bool>();
}

std::optional<std::string> JsonSection::text(const char* key) const {
  const Json* v = get(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_string()) wrong_type(*v, key, "text");
  return v->get<std::string>();
}

std::optional<std::vector<std::int64_t>> JsonSection::integers(const char* key) const {
  const Json* v = list(key);
  if (v == nullptr) return std::nullopt;
  std::vector<std::int64_t> out;
  for (const Json& item : *v) out.push_back(integer_value(item, key));
  return out;
}

std::optional<std::vector<std::string>> JsonSection::texts(const char* key) const {
  const Json* v = list(key);
  if (v == nullptr) return std::nullopt;
  std::vector<std::string> out;
  for (const Json& item : *v) {
    if (!item.is_string()) wrong_type(item, key, "a list of texts");
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::optional<JsonSection> JsonSection::section(const char* key) const {
  const Json* v = get(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_object()) wrong_type(*v, key, "an object");
  return JsonSection(*v, path(key) + ".", source_);
}

std::int64_t JsonSection::required_integer(const char* key) const {
  if (const auto v = integer(key)) return *v;
  missing(key);
}

double JsonSection::required_number(const char* key) const {
  if (const auto v = number(key)) return *v;
  missing(key);
}

void JsonSection::expect_text(const char* key, std::string_view wanted) const {
  const auto v = text(key);
  if (v && *v != wanted) {
    fail(ErrorCode::unsupported,
         fmt::format("{} is \"{}\"; hadal implements \"{}\"", path(key), *v, wanted));
  }
}

void JsonSection::expect_bool(const char* key, bool wanted) const {
  const auto v = boolean(key);
  if (v && *v != wanted) {
    fail(ErrorCode::unsupported,
         fmt::format("{} is {}; hadal implements {}", path(key), *v, wanted));
  }
}

void JsonSection::expect_integer(const char* key, std::int64_t wanted) const {
  const auto v = integer(key);
  if (v && *v != wanted) {
    fail(ErrorCode::unsupported,
         fmt::format("{} is {}; hadal implements {}", path(key), *v, wanted));
  }
}

std::string JsonSection::path(std::string_view key) const {
  return fmt::format("{}{}", path_, key);
}

void JsonSection::fail(ErrorCode code, const std::string& sentence) const {
  throw Error(code, fmt::format("{}: {}", source_, sentence));
}

void JsonSection::missing(std::string_view key, std::string_view hint) const {
  fail(ErrorCode::corrupt_data, fmt::format("the key {} is missing{}", path(key), hint));
}

const Json* JsonSection::get(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const Json* JsonSection::list(const char* key) const {
  const Json* v = get(key);
  if (v != nullptr && !v->is_array()) wrong_type(*v, key, "a list");
  return v;
}

std::int64_t JsonSection::integer_value(const Json& v, const char* key) const {
  if (!v.is_number_integer()) wrong_type(v, key, "an integer");
  if (v.is_number_unsigned() && v.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) {
    fail(ErrorCode::invalid_argument,
         fmt::format("{} is {}, beyond 64 bits", path(key), v.get<std::uint64_t>()));
  }
  return v.get<std::int64_t>();
}

void JsonSection::wrong_type(const Json& v, const char* key, std::string_view wanted) const {
  std::string found = v.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (found.size() > 60) found = found.substr(0, 57) + "...";
  fail(ErrorCode::corrupt_data, fmt::format("{} is {}, wanted {}", path(key), found, wanted));
}

}  // namespace hadal::io
