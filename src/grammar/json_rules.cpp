#include "grammar/json_rules.h"

#include <algorithm>

#include "io/json_escape.h"

namespace hadal::grammar {
namespace {

void digits(GrammarBuilder& builder, StateId from, StateId to) {
  builder.edge(from, '0', '9', to);
}

// Behind the integer part, which may end in any of `from`.
void fraction_and_exponent(GrammarBuilder& builder, const std::vector<StateId>& from) {
  const StateId point = builder.state(), fraction = builder.state(), e = builder.state(),
                sign = builder.state();
  for (const StateId s : from) {
    builder.accept(s);
    builder.edge(s, '.', point);
  }
  digits(builder, point, fraction);
  digits(builder, fraction, fraction);
  builder.accept(fraction);
  std::vector<StateId> mantissas = from;
  mantissas.push_back(fraction);
  for (const StateId s : mantissas) {
    builder.edge(s, 'e', e);
    builder.edge(s, 'E', e);
  }
  builder.edge(e, '+', sign);
  builder.edge(e, '-', sign);
  const StateId one = builder.state(), two = builder.state(), three = builder.state();
  digits(builder, e, one);
  digits(builder, sign, one);
  digits(builder, one, two);
  digits(builder, two, three);
  for (const StateId s : {one, two, three}) builder.accept(s);
}

// A whole number without leading zeros; the states in which it may end.
std::vector<StateId> whole(GrammarBuilder& builder, StateId from) {
  const StateId zero = builder.state(), more = builder.state();
  builder.edge(from, '0', zero);
  builder.edge(from, '1', '9', more);
  digits(builder, more, more);
  return {zero, more};
}

}  // namespace

std::vector<RuleId> JsonRules::all() const {
  return {string, number, boolean, null, object, array};
}

std::vector<RuleId> JsonRules::all_but_strings() const {
  return {number, boolean, null, object, array};
}

RuleId number_rule(GrammarBuilder& builder, bool negative_too) {
  const StateId start = builder.state();
  const std::vector<StateId> ends = whole(builder, start);
  if (negative_too) {
    const StateId minus = builder.text(start, "-");
    builder.edge(minus, '0', ends[0]);
    builder.edge(minus, '1', '9', ends[1]);
  }
  fraction_and_exponent(builder, ends);
  return builder.rule(start);
}

StringStates add_string(GrammarBuilder& builder, const TextForm& form) {
  const StateId start = builder.state(), end = builder.state();
  TextStates text(builder, form);
  const StateId inside = text.at();
  builder.edge(start, '"', inside);
  for (const StateId s : text.finish()) builder.edge(s, '"', end);
  builder.accept(end);
  return {.start = start, .inside = inside};
}

JsonRules add_json_rules(GrammarBuilder& builder, std::string_view forbidden) {
  JsonRules rules{.string = 0,
                  .number = number_rule(builder, true),
                  .integer = integer_rule(builder, {}, {}),
                  .boolean = 0,
                  .null = 0,
                  .object = builder.rule(),
                  .array = builder.rule(),
                  .in_string = 0,
                  .forbidden = std::string(forbidden)};
  const StringStates string_states =
      add_string(builder, {.style = TextForm::Style::json, .forbidden = rules.forbidden});
  rules.string = builder.rule(string_states.start);
  rules.in_string = string_states.inside;

  const StateId boolean = builder.state(), null = builder.state(), end = builder.state();
  builder.accept(end);
  builder.text(boolean, "true", end);
  builder.text(boolean, "false", end);
  builder.text(null, "null", end);
  rules.boolean = builder.rule(boolean);
  rules.null = builder.rule(null);

  set_array(builder, rules.array, {.prefix = {}, .items = rules.all(), .max_items = {}});

  const StateId open = builder.state(), colon = builder.state(), value = builder.state(),
                comma = builder.state(), key = builder.state(), close = builder.state();
  builder.accept(close);
  builder.edge(open, '{', key);
  const RuleId string[] = {rules.string};
  for (const StateId s : builder.blank(key)) {
    builder.call(s, string, colon);
    builder.edge(s, '}', close);
  }
  for (const StateId s : builder.blank(colon)) builder.edge(s, ':', value);
  const std::vector<RuleId> all = rules.all();
  const StateId next = builder.state();
  for (const StateId s : builder.blank(value)) builder.call(s, all, comma);
  for (const StateId s : builder.blank(comma)) {
    builder.edge(s, ',', next);
    builder.edge(s, '}', close);
  }
  for (const StateId s : builder.blank(next)) builder.call(s, string, colon);
  builder.set_rule(rules.object, {.start = open});
  return rules;
}

// A state for every number of items that matters, then one for all further ones.
void set_array(GrammarBuilder& builder, RuleId id, const ArrayForm& form) {
  Rule rule;
  rule.start = builder.state();
  const StateId close = builder.state();
  builder.accept(close);

  const bool is_open = !form.max_items && !form.items.empty();
  std::size_t last = form.max_items.value_or(std::max(form.prefix.size(), form.min_items));
  if (form.items.empty()) last = std::min(last, form.prefix.size());

  rule.needs.push_back({.rules = form.items, .required = form.min_items > form.prefix.size()});
  for (std::size_t i = 0; i < form.prefix.size(); ++i) {
    rule.needs.push_back({.rules = form.prefix[i], .required = i < form.min_items});
  }
  if (last < form.min_items) {  // a count that cannot be reached
    rule.needs.push_back({.rules = {}, .required = true});
  }

  // Before item i, when one must follow: behind a comma.
  const auto need_of = [&](std::size_t i) {
    return static_cast<std::int32_t>(i < form.prefix.size() ? i + 1 : 0);
  };
  const auto rules_of = [&](std::size_t i) -> const std::vector<RuleId>& {
    return i < form.prefix.size() ? form.prefix[i] : form.items;
  };
  StateId after = builder.text(rule.start, "[");
  for (std::size_t i = 0;; ++i) {
    const bool repeats = is_open && i > last;  // this item's successor is like itself
    const bool may_follow = is_open || i < last;
    const StateId then = repeats ? after : builder.state();
    for (const StateId s : builder.blank(after)) {
      if (i >= form.min_items) builder.edge(s, ']', close);
      if (!may_follow) continue;
      if (i == 0) {
        builder.call(s, rules_of(0), then);
      } else {
        // Items that are all alike fit where the first one did.
        const StateId comma =
            form.prefix.empty() ? builder.state() : builder.guarded_state({.need = need_of(i)});
        builder.edge(s, ',', comma);
        for (const StateId c : builder.blank(comma)) builder.call(c, rules_of(i), then);
      }
    }
    if (!may_follow || repeats) break;
    after = then;
  }
  builder.set_rule(id, std::move(rule));
}

void set_object(GrammarBuilder& builder, RuleId id, ObjectForm form, std::string_view forbidden) {
  for (ObjectForm::Property& property : form.properties) {
    property.name = json_escaped(property.name);
  }
  std::sort(form.properties.begin(), form.properties.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto n = static_cast<std::uint32_t>(form.properties.size());

  Rule rule;
  rule.n_properties = n;
  rule.start = builder.state();
  const StateId close = builder.guarded_state({.complete = true});
  builder.accept(close);
  const StateId comma = builder.state();  // behind a value
  const auto member = [&](StateId key_end, const std::vector<RuleId>& values) {
    const StateId value = builder.state();
    for (const StateId s : builder.blank(key_end)) builder.edge(s, ':', value);
    for (const StateId s : builder.blank(value)) builder.call(s, values, comma);
  };

  KeyForm keys;
  for (std::uint32_t i = 0; i < n; ++i) {
    ObjectForm::Property& property = form.properties[i];
    const StateId end = builder.guarded_state({.mark = static_cast<std::int32_t>(i)});
    member(end, property.values);
    keys.names.push_back(property.name);
    keys.ends.push_back(end);
    rule.needs.push_back({.rules = std::move(property.values), .required = property.required});
  }
  Guard more{.first = 0, .last = n, .any_left = true};
  if (form.additional) {
    more.extra = static_cast<std::int32_t>(n);
    const StateId end = builder.state();
    member(end, *form.additional);
    keys.extra = {
        .end = end,
        .need = more.extra,
        .form = {.style = TextForm::Style::json_key, .forbidden = std::string(forbidden)}};
    rule.needs.push_back({.rules = *form.additional});
  }
  const StateId key = add_keys(builder, keys);
  const StateId open = builder.text(rule.start, "{"), next = builder.guarded_state(more);
  for (const StateId s : builder.blank(open)) {
    builder.edge(s, '"', key);
    builder.edge(s, '}', close);
  }
  for (const StateId s : builder.blank(comma)) {
    builder.edge(s, ',', next);
    builder.edge(s, '}', close);
  }
  for (const StateId s : builder.blank(next)) builder.edge(s, '"', key);
  builder.set_rule(id, std::move(rule));
}

std::string json_escaped(std::string_view text) {
  std::string out;
  io::append_json_escaped(out, text);
  return out;
}

}  // namespace hadal::grammar
