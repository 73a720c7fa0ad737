#include "grammar/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "grammar/schema_compiler.h"

namespace hadal::grammar {
namespace {

// Through how many references and unions one value may lead.
constexpr int kMaxResolutions = 100;

// What only describes. Everything unknown counts as this, as JSON Schema wants it.
constexpr std::array<std::string_view, 16> kConstraints{"type",
                                                        "enum",
                                                        "const",
                                                        "properties",
                                                        "required",
                                                        "additionalProperties",
                                                        "items",
                                                        "prefixItems",
                                                        "minItems",
                                                        "maxItems",
                                                        "minimum",
                                                        "maximum",
                                                        "exclusiveMinimum",
                                                        "exclusiveMaximum",
                                                        "minLength",
                                                        "maxLength"};
constexpr std::array<std::string_view, 4> kCompositions{"$ref", "anyOf", "oneOf", "allOf"};
constexpr std::array<std::string_view, 24> kNotEnforced{"pattern",
                                                        "format",
                                                        "multipleOf",
                                                        "patternProperties",
                                                        "propertyNames",
                                                        "minProperties",
                                                        "maxProperties",
                                                        "uniqueItems",
                                                        "contains",
                                                        "minContains",
                                                        "maxContains",
                                                        "not",
                                                        "if",
                                                        "then",
                                                        "else",
                                                        "dependentRequired",
                                                        "dependentSchemas",
                                                        "dependencies",
                                                        "unevaluatedProperties",
                                                        "unevaluatedItems",
                                                        "additionalItems",
                                                        "contentEncoding",
                                                        "contentMediaType",
                                                        "$dynamicRef"};

template <std::size_t N>
bool has(const std::array<std::string_view, N>& list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

bool constrains(const SchemaJson& schema) {
  for (const auto& [keyword, value] : schema.items()) {
    if (has(kConstraints, keyword) || has(kCompositions, keyword) || has(kNotEnforced, keyword)) {
      return true;
    }
  }
  return false;
}

SchemaJson without(const SchemaJson& schema, const char* keyword) {
  SchemaJson rest = schema;
  rest.erase(keyword);
  return rest;
}

}  // namespace

void SchemaCompiler::Compiler::bad(const std::string& place, const std::string& sentence) {
  throw Error(ErrorCode::invalid_argument, fmt::format("schema at {}: {}", place, sentence));
}

void SchemaCompiler::Compiler::not_enforced(const std::string& keyword,
                                            const std::string& place) const {
  if (mode_ == SchemaMode::tolerant) return;
  throw Error(ErrorCode::unsupported,
              fmt::format("schema at {}: the keyword '{}' is not supported here under strict; "
                          "remove it or do without strict",
                          place, keyword));
}

void SchemaCompiler::Compiler::check_keywords(const SchemaJson& schema,
                                              const std::string& place) const {
  for (const auto& [keyword, value] : schema.items()) {
    const bool is_harmless = (keyword == "uniqueItems" && value == false) ||
                             (keyword == "additionalItems" && value.is_boolean());
    if (has(kNotEnforced, keyword) && !is_harmless) not_enforced(keyword, place);
  }
}

const ValueForms& SchemaCompiler::Compiler::forms(const SchemaJson& schema,
                                                  const std::string& place) {
  const auto known = known_.find(&schema);
  if (known != known_.end()) return known->second;
  ValueForms out;
  resolve(schema, place, 0, out);
  return known_.emplace(&schema, std::move(out)).first->second;
}

void SchemaCompiler::Compiler::resolve(const SchemaJson& schema, const std::string& place,
                                       int depth, ValueForms& out) {
  builder_.spend(1);
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) return;
    add_plain(SchemaJson::object(), place, out);
    return;
  }
  if (!schema.is_object())
    bad(place, fmt::format("found {}, wanted an object or a boolean", schema.type_name()));
  if (depth > kMaxResolutions) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("schema too complex: at {} references and unions lead into each other "
                            "more than {} times",
                            place, kMaxResolutions));
  }
  check_keywords(schema, place);
  const bool is_composed =
      std::any_of(kCompositions.begin(), kCompositions.end(),
                  [&](std::string_view word) { return schema.contains(std::string(word)); });
  if (!is_composed) return add_plain(schema, place, out);
  // A schema that leads back to itself adds nothing to itself.
  if (std::find(resolving_.begin(), resolving_.end(), &schema) != resolving_.end()) return;
  resolving_.push_back(&schema);
  for (const SchemaJson* part : parts(schema, place)) resolve(*part, place, depth + 1, out);
  resolving_.pop_back();
}

std::vector<const SchemaJson*> SchemaCompiler::Compiler::parts(const SchemaJson& schema,
                                                               const std::string& place) {
  const auto joined = [&](const SchemaJson& part, const SchemaJson& rest) {
    builder_.spend(1 + part.size() + rest.size());
    return constrains(rest) ? &document_.both(part, rest) : &part;
  };
  if (const auto reference = schema.find("$ref"); reference != schema.end()) {
    if (!reference->is_string()) bad(place, "$ref must be a string");
    return {joined(document_.target(reference->get<std::string>()), without(schema, "$ref"))};
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    const auto list = schema.find(keyword);
    if (list == schema.end()) continue;
    if (!list->is_array() || list->empty()) {
      bad(place, fmt::format("{} must be a list of schemas, not empty", keyword));
    }
    const SchemaJson rest = without(schema, keyword);
    std::vector<const SchemaJson*> out;
    if (std::string_view(keyword) != "allOf") {
      for (const SchemaJson& part : *list) out.push_back(joined(part, rest));
      return out;
    }
    const SchemaJson* all = &list->front();
    for (std::size_t i = 1; i < list->size(); ++i) all = joined(*all, (*list)[i]);
    return {joined(*all, rest)};
  }
  return {};
}

std::vector<std::string> SchemaCompiler::Compiler::types_of(const SchemaJson& schema,
                                                            const std::string& place) const {
  static const std::array<std::string_view, 7> kTypes{"string", "number", "integer", "boolean",
                                                      "null",   "object", "array"};
  const auto type = schema.find("type");
  std::vector<std::string> types;
  if (type != schema.end()) {
    const SchemaJson list = type->is_array() ? *type : SchemaJson::array({*type});
    for (const SchemaJson& one : list) {
      if (!one.is_string() || !has(kTypes, one.get<std::string>())) {
        bad(place, fmt::format("type {} is unknown; known are string, number, integer, boolean, "
                               "null, object and array",
                               one.dump()));
      }
      types.push_back(one.get<std::string>());
    }
    return types;
  }
  const auto implied = [&](std::initializer_list<const char*> keywords) {
    return std::any_of(keywords.begin(), keywords.end(),
                       [&](const char* keyword) { return schema.contains(keyword); });
  };
  if (implied({"properties", "required", "additionalProperties"})) types.emplace_back("object");
  if (implied({"items", "prefixItems", "minItems", "maxItems"})) types.emplace_back("array");
  if (implied({"minLength", "maxLength"})) types.emplace_back("string");
  if (implied({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})) {
    types.emplace_back("number");
  }
  if (types.empty()) types = {"string", "number", "boolean", "null", "object", "array"};
  return types;
}

void SchemaCompiler::Compiler::add_plain(const SchemaJson& schema, const std::string& place,
                                         ValueForms& out) {
  const std::vector<std::string> types = types_of(schema, place);
  const auto values = schema.find("enum"), constant = schema.find("const");
  if (values != schema.end() && !values->is_array()) bad(place, "enum must be a list of values");
  if (constant != schema.end()) {
    const bool excluded = values != schema.end() &&
                          std::find(values->begin(), values->end(), *constant) == values->end();
    return add_literals(excluded ? SchemaJson::array() : SchemaJson::array({*constant}), types,
                        out);
  }
  if (values != schema.end()) return add_literals(*values, types, out);
  for (const std::string& type : types) add_typed(schema, type, place, out);
}

void SchemaCompiler::Compiler::add_typed(const SchemaJson& schema, const std::string& type,
                                         const std::string& place, ValueForms& out) {
  if (type == "string") {
    out.any_string = true;
    out.strings.push_back(string(schema, place));
  } else if (type == "number") {
    out.others.push_back(number(schema, place));
  } else if (type == "integer") {
    out.others.push_back(integer(schema, place));
  } else if (type == "boolean") {
    out.others.push_back(json_.boolean);
  } else if (type == "null") {
    out.others.push_back(json_.null);
  } else if (type == "object") {
    out.others.push_back(object(schema, place));
  } else {
    out.others.push_back(array(schema, place));
  }
}

std::vector<RuleId> ValueForms::all() const {
  std::vector<RuleId> rules = others;
  rules.insert(rules.end(), strings.begin(), strings.end());
  std::sort(rules.begin(), rules.end());
  rules.erase(std::unique(rules.begin(), rules.end()), rules.end());
  return rules;
}

void SchemaCompiler::Compiler::finish() {
  while (!bodies_.empty()) {
    const std::function<void()> body = std::move(bodies_.front());
    bodies_.pop_front();
    body();
  }
}

ObjectSchema SchemaCompiler::Compiler::object() {
  const SchemaJson* schema = &document_.root();
  const std::string place = "#";
  for (int i = 0; i < kMaxResolutions; ++i) {
    if (schema->is_boolean() && schema->get<bool>()) schema = &document_.keep(SchemaJson::object());
    if (!schema->is_object()) bad(place, "found no object, wanted the schema of an object");
    check_keywords(*schema, place);
    const std::vector<const SchemaJson*> next = parts(*schema, place);
    if (next.empty()) {
      const auto types =
          schema->contains("type") ? types_of(*schema, place) : std::vector<std::string>{"object"};
      if (std::find(types.begin(), types.end(), "object") == types.end()) {
        bad(place, fmt::format("the type is {}, wanted object", types.front()));
      }
      const Members all = members(*schema, place);
      ObjectSchema out;
      for (const Member& member : all.declared) {
        out.properties.push_back(
            {.name = member.name,
             .required = member.required,
             .forms = forms(*member.schema, place + "/properties/" + member.name)});
      }
      if (all.additional != nullptr) {
        out.additional = forms(*all.additional, place + "/additionalProperties");
      }
      return out;
    }
    if (next.size() > 1) bad(place, "anyOf is not supported at the top of a tool's parameters");
    schema = next.front();
  }
  bad(place, "references lead in a circle");
}

SchemaCompiler::SchemaCompiler(GrammarBuilder& builder, const JsonRules& json,
                               std::string_view schema, SchemaMode mode)
    : compiler_(std::make_unique<Compiler>(builder, json, schema, mode)) {}
SchemaCompiler::~SchemaCompiler() = default;

ValueForms SchemaCompiler::root() {
  return compiler_->root();
}

ObjectSchema SchemaCompiler::object() {
  return compiler_->object();
}

void SchemaCompiler::finish() {
  compiler_->finish();
}

}  // namespace hadal::grammar
