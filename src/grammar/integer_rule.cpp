// Integers between bounds, digit by digit.
#include <algorithm>
#include <array>
#include <string>

#include "grammar/json_rules.h"

namespace hadal::grammar {
namespace {

// Numbers of as many digits as both bounds have. A state knows whether what was read so far equals
// the lower bound's beginning, the upper one's, both or neither.
void same_length(GrammarBuilder& builder, StateId start, const std::string& low,
                 const std::string& high, StateId end) {
  struct Tight {
    bool low, high;
  };
  constexpr std::array<Tight, 4> kTight{
      {{false, false}, {true, false}, {false, true}, {true, true}}};
  std::array<std::optional<StateId>, 4> now{{{}, {}, {}, start}};
  for (std::size_t i = 0; i < low.size(); ++i) {
    std::array<std::optional<StateId>, 4> next;
    for (std::size_t t = 0; t < 4; ++t) {
      if (!now[t]) continue;
      const char first = kTight[t].low ? low[i] : '0', last = kTight[t].high ? high[i] : '9';
      for (char digit = first; digit <= last; ++digit) {
        const std::size_t to = (kTight[t].low && digit == low[i] ? 1U : 0U) +
                               (kTight[t].high && digit == high[i] ? 2U : 0U);
        StateId target = end;
        if (i + 1 < low.size()) {
          if (!next[to]) next[to] = builder.state();
          target = *next[to];
        }
        builder.edge(*now[t], digit, target);
      }
    }
    now = next;
  }
}

// Whole numbers in [low, high], or from `low` on.
void magnitudes(GrammarBuilder& builder, StateId start, std::uint64_t low,
                std::optional<std::uint64_t> high, StateId end) {
  if (high && *high < low) return;
  const std::string least = std::to_string(low);
  const std::string most = high ? std::to_string(*high) : std::string(least.size(), '9');
  for (std::size_t n = least.size(); n <= most.size(); ++n) {
    const std::string from = n == least.size() ? least : std::string(n - 1, '0').insert(0, 1, '1');
    const std::string to = n == most.size() ? most : std::string(n, '9');
    same_length(builder, start, from, to, end);
  }
  if (high) return;
  const StateId more = builder.state();
  StateId at = builder.state();
  builder.edge(start, '1', '9', at);
  for (std::size_t i = 1; i < least.size(); ++i) {
    const StateId next = builder.state();
    builder.edge(at, '0', '9', next);
    at = next;
  }
  builder.edge(at, '0', '9', more);
  builder.edge(more, '0', '9', more);
  builder.accept(more);
}

std::uint64_t magnitude(std::int64_t value) {
  return value < 0 ? ~static_cast<std::uint64_t>(value) + 1 : static_cast<std::uint64_t>(value);
}

}  // namespace

RuleId integer_rule(GrammarBuilder& builder, std::optional<std::int64_t> minimum,
                    std::optional<std::int64_t> maximum) {
  const StateId start = builder.state(), end = builder.state();
  builder.accept(end);
  if (minimum && maximum && *maximum < *minimum) {
    const RuleId nothing = builder.rule();
    Rule rule{.start = start};
    rule.needs.push_back({.rules = {}, .required = true});
    builder.set_rule(nothing, std::move(rule));
    return nothing;
  }
  if (!maximum || *maximum >= 0) {
    magnitudes(builder, start, minimum && *minimum > 0 ? magnitude(*minimum) : 0,
               maximum ? std::optional(magnitude(*maximum)) : std::nullopt, end);
  }
  if (!minimum || *minimum < 0) {
    const StateId minus = builder.text(start, "-");
    magnitudes(builder, minus, maximum && *maximum < 0 ? magnitude(*maximum) : 1,
               minimum ? std::optional(magnitude(*minimum)) : std::nullopt, end);
  }
  return builder.rule(start);
}

}  // namespace hadal::grammar
