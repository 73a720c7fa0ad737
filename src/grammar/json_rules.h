// JSON values, spelt as a model should: at most one blank between tokens, no line breaks.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/text_rules.h"

namespace hadal::grammar {

// Numbers of any size, but exponents of at most three digits; strings of valid UTF-8 with valid
// escapes; nesting as far as kMaxDepth. Source: RFC 8259.
struct JsonRules {
  RuleId string, number, integer, boolean, null, object, array;
  StateId in_string;      // behind the quote that opens one
  std::string forbidden;  // what no string spells

  [[nodiscard]] std::vector<RuleId> all() const;
  [[nodiscard]] std::vector<RuleId> all_but_strings() const;
};
[[nodiscard]] JsonRules add_json_rules(GrammarBuilder& builder, std::string_view forbidden);

struct ArrayForm {
  std::vector<std::vector<RuleId>> prefix;  // what the first items are
  std::vector<RuleId> items;                // what further ones are; none: there are none
  std::size_t min_items = 0;
  std::optional<std::size_t> max_items;
};
void set_array(GrammarBuilder& builder, RuleId id, const ArrayForm& form);

// Members in any order, none declared twice.
struct ObjectForm {
  struct Property {
    std::string name;
    std::vector<RuleId> values;
    bool required = false;
  };
  std::vector<Property> properties;
  std::optional<std::vector<RuleId>> additional;  // what undeclared members are, where they may be
};
void set_object(GrammarBuilder& builder, RuleId id, ObjectForm form, std::string_view forbidden);

// Where a rule starts that reads a quoted text of this form, and where it stands behind the quote.
struct StringStates {
  StateId start, inside;
};
[[nodiscard]] StringStates add_string(GrammarBuilder& builder, const TextForm& form);
// An integer between the bounds, where there are some.
[[nodiscard]] RuleId integer_rule(GrammarBuilder& builder, std::optional<std::int64_t> minimum,
                                  std::optional<std::int64_t> maximum);
[[nodiscard]] RuleId number_rule(GrammarBuilder& builder, bool negative_too);

// The inside of `text` as a JSON string, non-ASCII as it is.
[[nodiscard]] std::string json_escaped(std::string_view text);

}  // namespace hadal::grammar
