// The schema compiler type by type.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/error.h"
#include "grammar/schema_compiler.h"

namespace hadal::grammar {
namespace {

constexpr double kInt64 = 9.2e18;

bool is_type(const SchemaJson& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "number") return value.is_number();
  if (type == "integer") {
    return value.is_number_integer() ||
           (value.is_number_float() && std::trunc(value.get<double>()) == value.get<double>());
  }
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "object") return value.is_object();
  return value.is_array();
}

}  // namespace

std::optional<std::size_t> SchemaCompiler::Compiler::count(const SchemaJson& schema,
                                                           const char* keyword,
                                                           const std::string& place) const {
  const auto found = schema.find(keyword);
  if (found == schema.end()) return std::nullopt;
  const double value = found->is_number() ? found->get<double>() : -1;
  if (!(value >= 0) || value != std::trunc(value)) {
    bad(place, fmt::format("{} is {}, wanted a whole number", keyword, found->dump()));
  }
  return static_cast<std::size_t>(std::min(value, 1e15));
}

std::optional<double> SchemaCompiler::Compiler::bound(const SchemaJson& schema, const char* keyword,
                                                      const std::string& place) const {
  const auto found = schema.find(keyword);
  if (found == schema.end()) return std::nullopt;
  if (!found->is_number()) {
    bad(place, fmt::format("{} is {}, wanted a number", keyword, found->dump()));
  }
  return found->get<double>();
}

RuleId SchemaCompiler::Compiler::number(const SchemaJson& schema, const std::string& place) {
  const auto minimum = bound(schema, "minimum", place);
  for (const char* keyword : {"maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
    if (bound(schema, keyword, place)) not_enforced(keyword, place);
  }
  if (!minimum) return json_.number;
  if (*minimum != 0) {
    not_enforced("minimum", place);
    if (*minimum < 0) return json_.number;
  }
  return number_rule(builder_, false);
}

RuleId SchemaCompiler::Compiler::integer(const SchemaJson& schema, const std::string& place) {
  std::optional<std::int64_t> least, most;
  const auto at_least = [&](double v) {
    if (v > kInt64) bad(place, "the lower bound of an integer lies above 2^63");
    if (v >= -kInt64) least = std::max(least.value_or(INT64_MIN), static_cast<std::int64_t>(v));
  };
  const auto at_most = [&](double v) {
    if (v < -kInt64) bad(place, "the upper bound of an integer lies below -2^63");
    if (v <= kInt64) most = std::min(most.value_or(INT64_MAX), static_cast<std::int64_t>(v));
  };
  if (const auto v = bound(schema, "minimum", place)) at_least(std::ceil(*v));
  if (const auto v = bound(schema, "exclusiveMinimum", place)) at_least(std::floor(*v) + 1);
  if (const auto v = bound(schema, "maximum", place)) at_most(std::floor(*v));
  if (const auto v = bound(schema, "exclusiveMaximum", place)) at_most(std::ceil(*v) - 1);
  if (!least && !most) return json_.integer;
  return integer_rule(builder_, least, most);
}

RuleId SchemaCompiler::Compiler::string(const SchemaJson& schema, const std::string& place) {
  const auto least = count(schema, "minLength", place), most = count(schema, "maxLength", place);
  if (least.value_or(0) == 0 && !most) return json_.string;
  const RuleId id = builder_.rule();
  bodies_.emplace_back([=, this] {
    Rule rule;
    if (most && *most < least.value_or(0)) rule.needs.push_back({.rules = {}, .required = true});
    rule.start = add_string(builder_, {.style = TextForm::Style::json,
                                       .forbidden = json_.forbidden,
                                       .min_length = least.value_or(0),
                                       .max_length = most,
                                       .unbounded = json_.in_string})
                     .start;
    builder_.set_rule(id, std::move(rule));
  });
  return id;
}

RuleId SchemaCompiler::Compiler::array(const SchemaJson& schema, const std::string& place) {
  const auto items = schema.find("items"), prefix = schema.find("prefixItems");
  const auto least = count(schema, "minItems", place), most = count(schema, "maxItems", place);
  if (items == schema.end() && prefix == schema.end() && !least && !most) return json_.array;
  // A list under "items" is how older drafts spell prefixItems.
  const bool is_old = items != schema.end() && items->is_array();
  const SchemaJson* first = is_old ? &*items : prefix != schema.end() ? &*prefix : nullptr;
  if (first != nullptr && !first->is_array()) bad(place, "prefixItems must be a list of schemas");
  const SchemaJson* rest = is_old || items == schema.end() ? &anything_ : &*items;

  const RuleId id = builder_.rule();
  bodies_.emplace_back([=, this] {
    ArrayForm form{.prefix = {},
                   .items = forms(*rest, place + "/items").all(),
                   .min_items = least.value_or(0),
                   .max_items = most};
    if (first != nullptr) {
      for (std::size_t i = 0; i < first->size(); ++i) {
        form.prefix.push_back(forms((*first)[i], fmt::format("{}/prefixItems/{}", place, i)).all());
      }
    }
    set_array(builder_, id, form);
  });
  return id;
}

SchemaCompiler::Compiler::Members SchemaCompiler::Compiler::members(const SchemaJson& schema,
                                                                    const std::string& place) {
  Members out;
  const auto properties = schema.find("properties"), required = schema.find("required"),
             additional = schema.find("additionalProperties");
  if (additional == schema.end()) {
    out.additional = &anything_;
  } else if (!(additional->is_boolean() && !additional->get<bool>())) {
    out.additional = &*additional;
  }
  if (properties != schema.end()) {
    if (!properties->is_object()) bad(place, "properties must be an object of schemas");
    for (const auto& [name, member] : properties->items()) {
      builder_.spend(1);
      out.declared.push_back({.name = name, .schema = &member, .required = false});
    }
  }
  if (required == schema.end()) return out;
  if (!required->is_array()) bad(place, "required must be a list of names");
  std::map<std::string, std::size_t> by_name;
  for (std::size_t i = 0; i < out.declared.size(); ++i) by_name[out.declared[i].name] = i;
  for (const SchemaJson& name : *required) {
    if (!name.is_string()) bad(place, "required must be a list of names");
    const auto [found, is_new] = by_name.emplace(name.get<std::string>(), out.declared.size());
    if (is_new) {
      const SchemaJson* member = out.additional;
      if (member == nullptr) member = &document_.keep(false);
      out.declared.push_back({.name = found->first, .schema = member, .required = true});
    }
    out.declared[found->second].required = true;
  }
  return out;
}

RuleId SchemaCompiler::Compiler::object(const SchemaJson& schema, const std::string& place) {
  const bool is_free =
      !schema.contains("properties") && !schema.contains("required") &&
      (!schema.contains("additionalProperties") || schema["additionalProperties"] == true);
  if (is_free) return json_.object;
  const RuleId id = builder_.rule();
  bodies_.emplace_back([=, this, &schema] {
    const Members all = members(schema, place);
    ObjectForm form;
    for (const Member& member : all.declared) {
      form.properties.push_back(
          {.name = member.name,
           .values = forms(*member.schema, place + "/properties/" + member.name).all(),
           .required = member.required});
    }
    if (all.additional != nullptr) {
      form.additional = forms(*all.additional, place + "/additionalProperties").all();
    }
    set_object(builder_, id, std::move(form), json_.forbidden);
  });
  return id;
}

// Strings share a trie; other values have a rule each.
void SchemaCompiler::Compiler::add_literals(const SchemaJson& values,
                                            const std::vector<std::string>& types,
                                            ValueForms& out) {
  std::vector<std::string> strings, scalars;
  for (const SchemaJson& value : values) {
    builder_.spend(1);
    const bool is_wanted = std::any_of(
        types.begin(), types.end(), [&](const std::string& type) { return is_type(value, type); });
    if (!is_wanted) continue;
    if (value.is_string()) {
      strings.push_back(json_escaped(value.get<std::string>()));
      out.string_values.push_back(value.get<std::string>());
    } else if (value.is_structured()) {
      out.others.push_back(literal(value));
    } else {
      scalars.push_back(value.dump());
    }
  }
  if (!strings.empty()) {
    const StateId start = builder_.state(), end = builder_.state();
    builder_.accept(end);
    add_choice(builder_, builder_.text(start, "\""), std::move(strings), '"', end);
    out.strings.push_back(builder_.rule(start));
  }
  for (const std::string& scalar : scalars) {
    const StateId start = builder_.state();
    builder_.accept(builder_.text(start, scalar));
    out.others.push_back(builder_.rule(start));
  }
}

// A rule for each value inside another: the blank before it would double all of it otherwise.
RuleId SchemaCompiler::Compiler::literal(const SchemaJson& value) {
  Rule rule{.start = builder_.state()};
  const StateId end = builder_.state();
  builder_.accept(end);
  if (!value.is_structured()) {
    builder_.text(rule.start,
                  value.is_string() ? fmt::format("\"{}\"", json_escaped(value.get<std::string>()))
                                    : value.dump(),
                  end);
    return builder_.rule(rule.start);
  }
  const bool is_object = value.is_object();
  StateId at = builder_.text(rule.start, is_object ? "{" : "[");
  bool is_first = true;
  for (const auto& [key, member] : value.items()) {
    if (!is_first) at = builder_.text(at, ",");
    is_first = false;
    StateId before = at;
    if (is_object) {
      const StateId quote = builder_.state();
      for (const StateId s : builder_.blank(at)) builder_.edge(s, '"', quote);
      const StateId key_end = builder_.text(quote, json_escaped(key) + '"');
      before = builder_.state();
      for (const StateId s : builder_.blank(key_end)) builder_.edge(s, ':', before);
    }
    rule.needs.push_back({.rules = {literal(member)}, .required = true});
    const StateId after = builder_.state();
    for (const StateId s : builder_.blank(before)) {
      builder_.call(s, rule.needs.back().rules, after);
    }
    at = after;
  }
  for (const StateId s : builder_.blank(at)) builder_.edge(s, is_object ? '}' : ']', end);
  const RuleId id = builder_.rule();
  builder_.set_rule(id, std::move(rule));
  return id;
}

}  // namespace hadal::grammar
