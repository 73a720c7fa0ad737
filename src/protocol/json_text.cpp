#include "protocol/json_text.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/error.h"

namespace hadal::protocol {
namespace {

// nlohmann's parser refuses numbers that its float type cannot hold. Python reads 1e400 as infinity
// and keeps integers of any length, so the parser gets the widest type there is; the value itself
// is taken from the text.
using WideJson = nlohmann::basic_json<std::map, std::vector, std::string, bool, std::int64_t,
                                      std::uint64_t, long double>;

double to_double(std::string_view text, long double wide) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec == std::errc()) return value;
  // Out of double's range: from_chars leaves open which end.
  const double magnitude = std::fabs(wide) > 1 ? HUGE_VAL : 0.0;
  return std::signbit(wide) ? -magnitude : magnitude;
}

// By the alternatives of Json::Value.
constexpr const char* kTypeNames[] = {"null",   "boolean", "number", "number",
                                      "string", "array",   "object"};

// Builds a Json from nlohmann's events.
class Builder final : public nlohmann::json_sax<WideJson> {
 public:
  bool null() override { return put(Json()); }
  bool boolean(bool v) override { return put(Json(v)); }
  bool number_integer(std::int64_t v) override {
    return put(Json(Json::Integer{std::to_string(v)}));
  }
  bool number_unsigned(std::uint64_t v) override {
    return put(Json(Json::Integer{std::to_string(v)}));
  }
  bool number_float(long double wide, const std::string& text) override {
    // An integer that does not fit 64 bits also comes here.
    if (text.find_first_of(".eE") == std::string::npos) return put(Json(Json::Integer{text}));
    return put(Json(to_double(text, wide)));
  }
  bool string(std::string& v) override { return put(Json(std::move(v))); }
  bool binary(WideJson::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json(Json::Object())); }
  bool start_array(std::size_t) override { return open(Json(Json::Array())); }
  bool key(std::string& k) override {
    open_.back().key = std::move(k);
    return true;
  }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the tag is theirs.
    const std::string_view what = e.what();
    const std::size_t tag = what.find("] ");
    error = what.substr(tag == std::string_view::npos ? 0 : tag + 2);
    return false;
  }

  Json root;
  std::string error;

 private:
  struct Frame {
    Json value;
    std::string key;                                     // of the member being read
    std::unordered_map<std::string, std::size_t> index;  // key -> member; only of long objects
  };
  static constexpr std::size_t kIndexFrom = 16;  // members; below, a walk is as good

  bool open(Json value) {
    if (open_.size() == Json::kMaxDepth) {
      error = fmt::format("arrays and objects nest deeper than {} levels", Json::kMaxDepth);
      return false;
    }
    open_.push_back({std::move(value), {}, {}});
    return true;
  }

  bool close() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return put(std::move(value));
  }

  bool put(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return true;
    }
    Frame& frame = open_.back();
    if (auto* array = std::get_if<Json::Array>(&frame.value.value)) {
      array->push_back(std::move(value));
    } else {
      put_member(frame, std::move(value));
    }
    return true;
  }

  static void put_member(Frame& frame, Json value) {
    auto& object = std::get<Json::Object>(frame.value.value);
    if (object.size() == kIndexFrom && frame.index.empty()) {
      for (std::size_t i = 0; i < object.size(); ++i) frame.index.emplace(object[i].key, i);
    }
    std::size_t at = object.size();
    if (object.size() < kIndexFrom) {
      for (std::size_t i = 0; i < object.size(); ++i) {
        if (object[i].key == frame.key) at = i;
      }
    } else {
      at = frame.index.emplace(frame.key, object.size()).first->second;
    }
    if (at < object.size()) {
      object[at].value = std::move(value);
    } else {
      object.push_back({std::move(frame.key), std::move(value)});
    }
  }

  std::vector<Frame> open_;
};

// What nlohmann's parser takes and JSON does not: a NUL, which it reads as the end, and a byte
// order mark. Text that is pasted into other JSON must have neither.
const char* not_json(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return "it holds a NUL byte";
  if (text.starts_with("\xEF\xBB\xBF")) return "it begins with a byte order mark";
  return nullptr;
}

bool build(std::string_view text, Builder& builder) {
  if (const char* reason = not_json(text)) {
    builder.error = reason;
    return false;
  }
  return WideJson::sax_parse(text.begin(), text.end(), &builder);
}

// Python's repr(float): the shortest digits that read back; an exponent when it is below -4 or at
// least 16; never without ".0" or an exponent.
void append_float(std::string& out, double value) {
  if (std::isinf(value)) {
    out += value < 0 ? "-Infinity" : "Infinity";
    return;
  }
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));  // [-]d[.ddd]e[+-]dd
  if (text.front() == '-') {
    out += '-';
    text.remove_prefix(1);
  }
  const std::size_t e = text.find('e');
  std::string digits(text.substr(0, 1));
  if (e > 2) digits += text.substr(2, e - 2);
  int exponent = 0;
  const std::size_t exponent_at = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + exponent_at, text.data() + text.size(), exponent);

  const int n_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (n_digits > 1) out.append(".").append(digits, 1);
    out += fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  } else if (exponent < 0) {
    const auto n_zeros = static_cast<std::size_t>(-exponent) - 1;
    out.append("0.").append(n_zeros, '0').append(digits);
  } else if (n_digits <= exponent + 1) {
    const auto n_whole = static_cast<std::size_t>(exponent) + 1;
    out.append(digits).append(n_whole - digits.size(), '0').append(".0");
  } else {
    const auto n_whole = static_cast<std::size_t>(exponent) + 1;
    out.append(digits, 0, n_whole).append(".").append(digits, n_whole);
  }
}

struct Printer {
  std::string& out;

  void operator()(std::nullptr_t) { out += "null"; }
  void operator()(bool v) { out += v ? "true" : "false"; }
  void operator()(const Json::Integer& v) { out += v.digits; }
  void operator()(double v) { append_float(out, v); }
  void operator()(const std::string& v) {
    out += '"';
    append_json_escaped(out, v);
    out += '"';
  }
  void operator()(const Json::Array& v) {
    out += '[';
    for (std::size_t i = 0; i < v.size(); ++i) {
      if (i > 0) out += ", ";
      std::visit(*this, v[i].value);
    }
    out += ']';
  }
  void operator()(const Json::Object& v) {
    out += '{';
    for (std::size_t i = 0; i < v.size(); ++i) {
      if (i > 0) out += ", ";
      (*this)(v[i].key);
      out += ": ";
      std::visit(*this, v[i].value.value);
    }
    out += '}';
  }
};

}  // namespace

Json Json::parse(std::string_view text) {
  Builder builder;
  if (!build(text, builder)) {
    throw Error(ErrorCode::invalid_argument, fmt::format("not valid JSON: {}", builder.error));
  }
  return std::move(builder.root);
}

std::optional<Json> Json::try_parse(std::string_view text) {
  Builder builder;
  if (!build(text, builder)) return std::nullopt;
  return std::move(builder.root);
}

std::string Json::dump() const {
  std::string out;
  std::visit(Printer{out}, value);
  return out;
}

const Json* Json::find(std::string_view key) const {
  const auto* object = as<Object>();
  if (object == nullptr) return nullptr;
  for (const Member& member : *object) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

bool Json::truthy() const {
  if (const auto* v = as<bool>()) return *v;
  if (const auto* v = as<Integer>()) return v->digits != "0";
  if (const auto* v = as<double>()) return *v != 0;
  if (const auto* v = as<std::string>()) return !v->empty();
  if (const auto* v = as<Array>()) return !v->empty();
  if (const auto* v = as<Object>()) return !v->empty();
  return false;
}

const char* Json::type_name() const {
  return kTypeNames[value.index()];
}

bool is_json(std::string_view text) {
  return not_json(text) == nullptr && WideJson::accept(text.begin(), text.end());
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  append_json_escaped(out, text);
  out += '"';
  return out;
}

}  // namespace hadal::protocol
