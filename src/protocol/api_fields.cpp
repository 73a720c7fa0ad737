#include "protocol/api_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/utf8.h"

namespace hadal::protocol {
namespace {

constexpr std::size_t kMaxShown = 64;    // bytes of a value or a name in a message
constexpr std::size_t kMaxUnknown = 64;  // names kept of a request
constexpr std::string_view kBody = "the request body";

// The beginning of `text`, whole characters only.
std::string shortened(std::string_view text) {
  if (text.size() <= kMaxShown) return std::string(text);
  std::size_t n = kMaxShown;
  while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xC0U) == 0x80U) --n;
  return std::string(text.substr(0, n)) + "...";
}

std::string shown(const Json& value) {
  if (const auto* text = value.as<std::string>()) return json_string(shortened(*text));
  if (value.as<Json::Array>() != nullptr) return "an array";
  if (value.as<Json::Object>() != nullptr) return "an object";
  return shortened(value.dump());
}

// Integers of any length become the nearest double, infinite ones included.
double to_double(const std::string& digits) {
  double value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (result.ec == std::errc()) return value;
  return digits.front() == '-' ? -HUGE_VAL : HUGE_VAL;
}

std::string wanted_integer(IntegerRange range) {
  if (range.max == std::numeric_limits<std::int64_t>::max()) {
    return range.min == std::numeric_limits<std::int64_t>::min()
               ? "an integer of 64 bits"
               : fmt::format("an integer of at least {}", range.min);
  }
  return fmt::format("an integer from {} to {}", range.min, range.max);
}

std::string wanted_number(NumberRange range) {
  if (std::isinf(range.max)) {
    return fmt::format("a number {} {}", range.without_min ? "above" : "of at least", range.min);
  }
  return fmt::format("a number {} {} {} {}", range.without_min ? "above" : "from", range.min,
                     range.without_min ? "and up to" : "to", range.max);
}

}  // namespace

void refuse_field(std::string_view path, std::string_view why) {
  ApiError error;
  error.message = fmt::format("{}: {}", path.empty() ? kBody : path, why);
  if (!path.empty()) error.param = std::string(path);
  throw ApiException(std::move(error));
}

void refuse_value(std::string_view path, const Json& found, std::string_view wanted) {
  refuse_field(path, fmt::format("found {}, wanted {}", shown(found), wanted));
}

const std::string& text_of(const Json& value, std::string_view path) {
  const auto* text = value.as<std::string>();
  if (text == nullptr) refuse_value(path, value, "a string");
  return *text;
}

bool bool_of(const Json& value, std::string_view path) {
  const auto* truth = value.as<bool>();
  if (truth == nullptr) refuse_value(path, value, "true or false");
  return *truth;
}

std::int64_t integer_of(const Json& value, std::string_view path, IntegerRange range) {
  const auto* integer = value.as<Json::Integer>();
  std::int64_t number = 0;
  if (integer != nullptr) {
    const std::string& digits = integer->digits;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (result.ec == std::errc() && number >= range.min && number <= range.max) return number;
  }
  refuse_value(path, value, wanted_integer(range));
}

double number_of(const Json& value, std::string_view path, NumberRange range) {
  double number = std::nan("");
  if (const auto* integer = value.as<Json::Integer>()) number = to_double(integer->digits);
  if (const auto* real = value.as<double>()) number = *real;
  const bool in_range = std::isfinite(number) && number <= range.max &&
                        (range.without_min ? number > range.min : number >= range.min);
  if (!in_range) refuse_value(path, value, wanted_number(range));
  return number;
}

const Json::Array& array_of(const Json& value, std::string_view path) {
  const auto* array = value.as<Json::Array>();
  if (array == nullptr) refuse_value(path, value, "an array");
  return *array;
}

const Json::Object& object_of(const Json& value, std::string_view path) {
  const auto* object = value.as<Json::Object>();
  if (object == nullptr) refuse_value(path, value, "an object");
  return *object;
}

Fields::Fields(const Json& object, std::string path) : object_(&object), path_(std::move(path)) {
  const std::size_t n_members = object_of(object, path_).size();
  if (n_members > kMaxMembers) {
    refuse_field(path_,
                 fmt::format("has {} members; no more than {} are read", n_members, kMaxMembers));
  }
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

const Json* Fields::find(std::string_view key) {
  if (std::ranges::find(known_, key) == known_.end()) known_.push_back(key);
  const Json* value = object_->find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const Json& Fields::required(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr) refuse_field(path(key), "is missing");
  return *value;
}

const std::string* Fields::text(std::string_view key) {
  const Json* value = find(key);
  return value == nullptr ? nullptr : &text_of(*value, path(key));
}

const std::string& Fields::required_text(std::string_view key) {
  return text_of(required(key), path(key));
}

std::optional<bool> Fields::boolean(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return bool_of(*value, path(key));
}

std::optional<std::int64_t> Fields::integer(std::string_view key, IntegerRange range) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return integer_of(*value, path(key), range);
}

std::optional<double> Fields::number(std::string_view key, NumberRange range) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return number_of(*value, path(key), range);
}

const Json::Array* Fields::array(std::string_view key) {
  const Json* value = find(key);
  return value == nullptr ? nullptr : &array_of(*value, path(key));
}

std::optional<Fields> Fields::object(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return Fields(*value, path(key));
}

void Fields::ignore(std::initializer_list<std::string_view> keys) {
  known_.insert(known_.end(), keys.begin(), keys.end());
}

void Fields::refuse_if_given(std::string_view key, std::string_view why) {
  const Json* value = find(key);
  if (value == nullptr) return;
  const auto* truth = value->as<bool>();
  if (truth == nullptr || *truth) refuse_field(path(key), why);
}

void Fields::unknown(std::vector<std::string>& out) const {
  for (const Json::Member& member : *object_->as<Json::Object>()) {
    if (out.size() == kMaxUnknown) return;
    if (std::ranges::find(known_, std::string_view(member.key)) != known_.end()) continue;
    const std::string prefix = without_indices(path_);
    std::string name = (prefix.empty() ? "" : prefix + ".") + shortened(member.key);
    if (std::ranges::find(out, name) == out.end()) out.push_back(std::move(name));
  }
}

std::string without_indices(std::string_view path) {
  std::string out;
  bool inside = false;
  for (const char c : path) {
    if (c == ']') inside = false;
    if (!inside) out += c;
    if (c == '[') inside = true;
  }
  return out;
}

}  // namespace hadal::protocol
