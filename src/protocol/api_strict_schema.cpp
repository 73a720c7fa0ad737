// The JSON Schemas that strict tools and strict answers may have.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "protocol/api_tools.h"

namespace hadal::protocol {
namespace {

constexpr std::string_view kTypes[] = {"string", "number", "integer", "boolean",
                                       "object", "array",  "null"};
constexpr std::string_view kKeywords[] = {
    "type",    "properties",  "required",    "additionalProperties",
    "items",   "enum",        "const",       "anyOf",
    "$ref",    "$defs",       "definitions", "title",
    "default", "description", "examples",    "$schema",
    "$id",     "$comment"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

class StrictSchema {
 public:
  explicit StrictSchema(const Json& root) : root_(root) {}

  void check(const Json& schema, const std::string& path) const {
    for (const Json::Member& member : object_of(schema, path)) {
      if (is_one_of(kKeywords, member.key)) continue;
      refuse_field(fmt::format("{}.{}", path, member.key),
                   fmt::format("the keyword '{}' is not supported in strict schemas; leave it out "
                               "or do without \"strict\": true",
                               member.key));
    }
    const bool says_something =
        std::ranges::any_of(std::array{"type", "enum", "const", "anyOf", "$ref", "properties"},
                            [&](const char* key) { return schema.find(key) != nullptr; });
    if (!says_something) refuse_field(path, "a strict schema needs a type, enum, anyOf or $ref");
    const bool is_object = check_type(schema, path) || schema.find("properties") != nullptr;
    if (is_object) check_object(schema, path);
    if (const Json* items = schema.find("items")) check(*items, path + ".items");
    check_enum(schema, path);
    check_any_of(schema, path);
    check_ref(schema, path);
    for (const char* key : {"$defs", "definitions"}) check_each(schema, key, path);
  }

 private:
  // Whether the type is, or may be, an object.
  static bool check_type(const Json& schema, const std::string& path) {
    const Json* type = schema.find("type");
    if (type == nullptr) return false;
    const std::string type_path = path + ".type";
    const Json::Array one = {*type};
    const auto* several = type->as<Json::Array>();
    const Json::Array& types = several != nullptr ? *several : one;
    if (types.empty()) refuse_field(type_path, "is empty");
    bool is_object = false;
    for (const Json& name : types) {
      const auto* word = name.as<std::string>();
      if (word == nullptr || !is_one_of(kTypes, *word)) {
        refuse_value(type_path, name, fmt::format("one of {}", fmt::join(kTypes, ", ")));
      }
      is_object |= *word == "object";
    }
    return is_object;
  }

  void check_object(const Json& schema, const std::string& path) const {
    const Json* additional = schema.find("additionalProperties");
    const bool* allowed = additional == nullptr ? nullptr : additional->as<bool>();
    if (allowed == nullptr || *allowed) {
      refuse_field(path + ".additionalProperties", "must be false in a strict schema");
    }
    std::vector<std::string_view> required;
    if (const Json* names = schema.find("required")) {
      for (const Json& name : array_of(*names, path + ".required")) {
        required.push_back(text_of(name, path + ".required"));
      }
    }
    check_each(schema, "properties", path);
    const Json* properties = schema.find("properties");
    for (const std::string_view name : required) {
      if (properties == nullptr || properties->find(name) == nullptr) {
        refuse_field(path + ".required", fmt::format("there is no property '{}'", name));
      }
    }
    if (properties == nullptr) return;
    std::ranges::sort(required);
    for (const Json::Member& property : *properties->as<Json::Object>()) {
      if (std::ranges::binary_search(required, std::string_view(property.key))) continue;
      refuse_field(path + ".required",
                   fmt::format("a strict schema must require every property, and '{}' is missing",
                               property.key));
    }
  }

  static void check_enum(const Json& schema, const std::string& path) {
    const Json* values = schema.find("enum");
    if (values != nullptr && array_of(*values, path + ".enum").empty()) {
      refuse_field(path + ".enum", "is empty");
    }
  }

  void check_any_of(const Json& schema, const std::string& path) const {
    const Json* branches = schema.find("anyOf");
    if (branches == nullptr) return;
    const std::string branches_path = path + ".anyOf";
    const Json::Array& list = array_of(*branches, branches_path);
    if (list.empty()) refuse_field(branches_path, "is empty");
    for (std::size_t i = 0; i < list.size(); ++i) {
      check(list[i], fmt::format("{}[{}]", branches_path, i));
    }
  }

  void check_each(const Json& schema, const char* key, const std::string& path) const {
    const Json* schemas = schema.find(key);
    if (schemas == nullptr) return;
    const std::string schemas_path = fmt::format("{}.{}", path, key);
    for (const Json::Member& member : object_of(*schemas, schemas_path)) {
      check(member.value, fmt::format("{}.{}", schemas_path, member.key));
    }
  }

  // A JSON pointer (RFC 6901) into this document.
  void check_ref(const Json& schema, const std::string& path) const {
    const Json* ref = schema.find("$ref");
    if (ref == nullptr) return;
    const std::string ref_path = path + ".$ref";
    std::string_view rest = text_of(*ref, ref_path);
    if (!rest.starts_with('#')) refuse_value(ref_path, *ref, "a reference that begins with '#'");
    rest.remove_prefix(1);
    const Json* target = &root_;
    while (!rest.empty() && rest.front() == '/' && target != nullptr) {
      rest.remove_prefix(1);
      const std::string_view step = rest.substr(0, rest.find('/'));
      rest.remove_prefix(step.size());
      target = target->find(unescaped(step));
    }
    if (!rest.empty() || target == nullptr || target->as<Json::Object>() == nullptr) {
      refuse_value(ref_path, *ref, "a reference to a schema of this document");
    }
  }

  static std::string unescaped(std::string_view step) {
    std::string out;
    for (std::size_t i = 0; i < step.size(); ++i) {
      const std::string_view two = step.substr(i, 2);
      if (two == "~0" || two == "~1") {
        out += two == "~0" ? '~' : '/';
        ++i;
      } else {
        out += step[i];
      }
    }
    return out;
  }

  const Json& root_;
};

}  // namespace

void check_strict_schema(const Json& schema, const std::string& path) {
  const Json* type = schema.find("type");
  const std::string* word = type == nullptr ? nullptr : type->as<std::string>();
  if (word == nullptr || *word != "object") {
    refuse_field(path + ".type", "the type of a strict schema as a whole must be \"object\"");
  }
  StrictSchema(schema).check(schema, path);
}

}  // namespace hadal::protocol
