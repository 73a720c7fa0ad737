#include "grammar/schema_document.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace hadal::grammar {
namespace {

constexpr int kMaxNesting = 256;

[[noreturn]] void unknown_reference(const std::string& reference, std::string_view why) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("schema reference \"{}\" {}; references lead into the same document, "
                          "as \"#/$defs/NAME\"",
                          reference, why));
}

// "%41" is A. Source: RFC 6901 §6.
std::string percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto is_hex = [&](std::size_t at) {
      return at < text.size() && std::isxdigit(static_cast<unsigned char>(text[at])) != 0;
    };
    if (text[i] == '%' && is_hex(i + 1) && is_hex(i + 2)) {
      out += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

SchemaJson as_list(const SchemaJson& type) {
  return type.is_array() ? type : SchemaJson::array({type});
}

// "number" includes "integer".
SchemaJson common_types(const SchemaJson& a, const SchemaJson& b) {
  SchemaJson common = SchemaJson::array();
  for (const SchemaJson& x : as_list(a)) {
    for (const SchemaJson& y : as_list(b)) {
      if (x == y) common.push_back(x);
      if (x == "number" && y == "integer") common.push_back(y);
      if (x == "integer" && y == "number") common.push_back(x);
    }
  }
  return common;
}

SchemaJson conjunction(const SchemaJson& a, const SchemaJson& b) {
  if (a == b) return a;
  return SchemaJson{{"allOf", SchemaJson::array({a, b})}};
}

void merge_properties(SchemaJson& into, const SchemaJson& a, const SchemaJson& b) {
  const auto additional_of = [](const SchemaJson& s) {
    const auto found = s.find("additionalProperties");
    return found == s.end() ? SchemaJson(true) : *found;
  };
  const auto members_of = [](const SchemaJson& s) {
    const auto found = s.find("properties");
    return found != s.end() && found->is_object() ? *found : SchemaJson::object();
  };
  const SchemaJson of_a = members_of(a), of_b = members_of(b);
  SchemaJson merged = SchemaJson::object();
  for (const auto& [name, schema] : of_a.items()) {
    merged[name] = conjunction(schema, of_b.contains(name) ? of_b[name] : additional_of(b));
  }
  for (const auto& [name, schema] : of_b.items()) {
    if (!of_a.contains(name)) merged[name] = conjunction(schema, additional_of(a));
  }
  if (!merged.empty()) into["properties"] = std::move(merged);
  if (a.contains("additionalProperties") || b.contains("additionalProperties")) {
    into["additionalProperties"] = conjunction(additional_of(a), additional_of(b));
  }
}

SchemaJson common_values(const SchemaJson& a, const SchemaJson& b) {
  SchemaJson common = SchemaJson::array();
  for (const SchemaJson& value : a) {
    if (std::find(b.begin(), b.end(), value) != b.end()) common.push_back(value);
  }
  return common;
}

bool is_larger(const std::string& keyword, const SchemaJson& a, const SchemaJson& b) {
  const bool wants_larger = keyword.starts_with("min") || keyword == "exclusiveMinimum";
  return (a.get<double>() > b.get<double>()) == wants_larger;
}

}  // namespace

SchemaDocument::SchemaDocument(std::string_view text) {
  const auto too_deep = [](int depth, SchemaJson::parse_event_t, SchemaJson&) {
    if (depth > kMaxNesting) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("schema too complex: it nests deeper than {}", kMaxNesting));
    }
    return true;
  };
  try {
    root_ = SchemaJson::parse(text, too_deep);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::invalid_argument, fmt::format("the schema is not JSON: {}", e.what()));
  }
}

const SchemaJson& SchemaDocument::target(const std::string& reference) const {
  if (!reference.starts_with('#')) unknown_reference(reference, "leads out of the document");
  const std::string pointer = percent_decoded(std::string_view(reference).substr(1));
  if (!pointer.empty() && pointer[0] != '/') unknown_reference(reference, "names an anchor");
  try {
    return root_.at(SchemaJson::json_pointer(pointer));
  } catch (const nlohmann::json::exception&) {
    unknown_reference(reference, "leads nowhere");
  }
}

const SchemaJson& SchemaDocument::keep(SchemaJson schema) {
  made_.push_back(std::move(schema));
  return made_.back();
}

const SchemaJson& SchemaDocument::both(const SchemaJson& a, const SchemaJson& b) {
  if (a.is_boolean()) return a.get<bool>() ? b : a;
  if (b.is_boolean()) return b.get<bool>() ? a : b;
  SchemaJson merged = a;
  SchemaJson further = SchemaJson::array();  // what has to be read as a whole
  for (const auto& [keyword, value] : b.items()) {
    const auto found = merged.find(keyword);
    if (keyword == "properties" || keyword == "additionalProperties") continue;
    if (found == merged.end()) {
      merged[keyword] = value;
    } else if (*found == value) {
      continue;
    } else if (keyword == "type") {
      *found = common_types(*found, value);
    } else if (keyword == "required" && found->is_array() && value.is_array()) {
      for (const SchemaJson& name : value) found->push_back(name);
    } else if (keyword == "enum" && found->is_array() && value.is_array()) {
      *found = common_values(*found, value);
    } else if (keyword == "items") {
      *found = conjunction(*found, value);
    } else if (found->is_number() && value.is_number() &&
               (keyword.starts_with("min") || keyword.starts_with("max") ||
                keyword.starts_with("exclusive"))) {
      if (is_larger(keyword, value, *found)) *found = value;
    } else if (keyword == "allOf" && found->is_array() && value.is_array()) {
      for (const SchemaJson& part : value) found->push_back(part);
    } else if (keyword == "const") {
      return keep(false);
    } else if (keyword == "prefixItems") {
      throw Error(
          ErrorCode::unsupported,
          "allOf joins two different prefixItems, which hadal cannot do; write them as one");
    } else if (keyword == "anyOf" || keyword == "oneOf" || keyword == "$ref") {
      further.push_back(SchemaJson{{keyword, value}});
    }
    // Else: words about the value, where the first have it.
  }
  if (a.is_object() && b.is_object()) merge_properties(merged, a, b);
  for (SchemaJson& part : further) {
    if (!merged.contains("allOf")) merged["allOf"] = SchemaJson::array();
    merged["allOf"].push_back(std::move(part));
  }
  return keep(std::move(merged));
}

}  // namespace hadal::grammar
