// Forms as automata: states that read bytes, call each other's rules, and keep account of what an
// object has so far.
#pragma once

#include <array>
#include <bitset>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/token.h"

namespace hadal::grammar {

// A byte of text, or kTokenSymbol + id: a token taken whole, which is how added tokens are read.
using Symbol = std::uint32_t;
inline constexpr Symbol kTokenSymbol = 256;
[[nodiscard]] inline Symbol token_symbol(TokenId id) {
  return kTokenSymbol + static_cast<Symbol>(id);
}

using StateId = std::uint32_t;
using RuleId = std::uint32_t;

// Rules that may be open inside each other. A call that could not end within this is not made.
inline constexpr std::uint32_t kMaxDepth = 66;
inline constexpr std::uint32_t kNever = 1'000'000;  // the height of what admits no text

struct Edge {
  Symbol first, last;
  StateId target;
};

// Reads a text of `rule`, then goes on in `then`. No rule admits the empty text.
struct Call {
  RuleId rule;
  StateId then;
};

// What must hold, of the innermost open rule, for a state to be entered, and what entering does.
struct Guard {
  // Some property in [first, last) is still to come, or, if extra >= 0, need number `extra` fits.
  std::uint32_t first = 0, last = 0;
  std::int32_t extra = -1;
  bool any_left = false;  // whether the three above are looked at

  std::int32_t need = -1;  // this need must fit into the depth that is left
  bool complete = false;   // every required property has come
  std::int32_t mark = -1;  // this property must not have come, and now has
  bool key_byte = false;   // the byte read belongs to a key that is not declared
  bool key_end = false;    // that key must be new
};

// Something a rule reads in one place: a text of one of these rules.
struct Need {
  std::vector<RuleId> rules;
  bool required = false;
  bool by_itself = false;  // can also be read without a call
};

struct Rule {
  StateId start = 0;
  std::vector<Need> needs = {};  // the properties' first
  std::uint32_t n_properties = 0;
  std::vector<std::uint64_t> required = {};  // a bit for each property

  // Computed by GrammarBuilder::finish().
  std::uint32_t height = 0;   // rules that are open inside this one, at the least
  std::uint32_t tallest = 0;  // the tallest need that can be met at all
  std::vector<std::uint32_t> need_heights = {};  // as `height`; kNever where it cannot be met
  std::vector<std::uint64_t> absent = {};        // properties that cannot be met: never to come
  std::bitset<256> first_bytes = {};
  std::vector<Symbol> first_tokens = {};
};

struct State {
  std::uint32_t edges = 0, n_edges = 0;
  std::uint32_t calls = 0, n_calls = 0;
  std::int32_t guard = -1;
  bool accepting = false;  // the rule may end here
};

// A state in a text of bounded length. As long as the bound is not met, it reads what the state
// `like` of the unbounded text does: so are the next n_bytes bytes, but for ends that come too
// early, which there are only if it may not end itself.
struct BoundedState {
  StateId state, like;
  std::uint32_t n_bytes;
  bool may_end;
};

// The tables, immutable. A grammar built on a base has the base's states and rules under the same
// numbers, so that what is known of them holds for both.
struct Tables {
  std::vector<State> states;
  std::vector<Edge> edges;
  std::vector<Call> calls;
  std::vector<Guard> guards;
  std::vector<Rule> rules;
  std::vector<BoundedState> bounded;  // by state

  [[nodiscard]] const BoundedState* find_bounded(StateId state) const;  // null when it is not
  [[nodiscard]] std::span<const Edge> edges_of(const State& state) const {
    return std::span(edges).subspan(state.edges, state.n_edges);
  }
  [[nodiscard]] std::span<const Call> calls_of(const State& state) const {
    return std::span(calls).subspan(state.calls, state.n_calls);
  }
};

struct GrammarBudget {
  std::size_t max_states = 1'000'000;
  std::chrono::milliseconds max_time{2000};
};

// Throws Error{invalid_argument} "... too complex" when the budget is spent, from any member.
class GrammarBuilder {
 public:
  explicit GrammarBuilder(const Tables& base = {}, GrammarBudget budget = {});

  [[nodiscard]] StateId state();
  [[nodiscard]] StateId guarded_state(Guard guard);
  void accept(StateId s) { at(s).accepting = true; }
  void edge(StateId from, Symbol first, Symbol last, StateId to);
  void edge(StateId from, char byte, StateId to);
  void token(StateId from, TokenId id, StateId to);
  void call(StateId from, std::span<const RuleId> rules, StateId then);

  // `from`, then the bytes of `text`; the state behind them.
  [[nodiscard]] StateId text(StateId from, std::string_view text);
  // The same, arriving in `to`. `text` is not empty.
  void text(StateId from, std::string_view text, StateId to);
  // Where a state and an optional blank behind it lead: both have to be continued.
  [[nodiscard]] std::array<StateId, 2> blank(StateId from);

  // Where `byte` leads from a state of the base; nothing where it leads nowhere, or for other
  // states.
  [[nodiscard]] std::optional<StateId> known_target(StateId from, unsigned byte) const;
  // Has to be said of the newest state; `bounded.like` is a state of the base.
  void bounded(const BoundedState& bounded) { tables_.bounded.push_back(bounded); }
  [[nodiscard]] bool is_known(StateId s) const { return s < n_base_states_; }

  [[nodiscard]] RuleId rule();  // to be given a body before finish()
  void set_rule(RuleId id, Rule rule);
  [[nodiscard]] RuleId rule(StateId start);

  // Spends budget on work that makes no states.
  void spend(std::size_t steps);

  // Nothing may be built afterwards. Throws Error{invalid_argument} "admits no text" when a rule of
  // `roots` does not.
  [[nodiscard]] Tables finish(std::span<const RuleId> roots);

 private:
  struct Draft {
    std::vector<Edge> edges;
    std::vector<Call> calls;
    std::int32_t guard = -1;
    bool accepting = false;
  };
  [[nodiscard]] Draft& at(StateId s) { return drafts_[s - n_base_states_]; }
  void flatten();
  void compute_heights();
  void compute_first(RuleId id, std::vector<char>& done);

  GrammarBudget budget_;
  std::chrono::steady_clock::time_point deadline_;
  Tables tables_;
  std::size_t n_base_states_, n_base_rules_;
  std::vector<Draft> drafts_;
  std::size_t spent_ = 0, next_look_ = 0;
};

}  // namespace hadal::grammar
