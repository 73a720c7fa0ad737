#include "grammar/grammar.h"

#include <algorithm>

#include "core/error.h"

namespace hadal::grammar {
namespace {

// Steps between two looks at the clock.
constexpr std::size_t kLook = 4096;

std::uint32_t height_of(const std::vector<Rule>& rules, const Need& need) {
  if (need.by_itself) return 0;
  std::uint32_t least = kNever;
  for (const RuleId id : need.rules) least = std::min(least, rules[id].height + 1);
  return std::min(least, kNever);
}

}  // namespace

const BoundedState* Tables::find_bounded(StateId state) const {
  const auto found = std::ranges::lower_bound(bounded, state, {}, &BoundedState::state);
  return found != bounded.end() && found->state == state ? &*found : nullptr;
}

GrammarBuilder::GrammarBuilder(const Tables& base, GrammarBudget budget)
    : budget_(budget),
      deadline_(std::chrono::steady_clock::now() + budget.max_time),
      tables_(base),
      n_base_states_(base.states.size()),
      n_base_rules_(base.rules.size()) {}

void GrammarBuilder::spend(std::size_t steps) {
  spent_ += steps;
  const bool late = spent_ >= next_look_ && std::chrono::steady_clock::now() > deadline_;
  if (spent_ >= next_look_) next_look_ = spent_ + kLook;
  if (late || spent_ > budget_.max_states) {
    throw Error(ErrorCode::invalid_argument,
                "schema too complex: compiling it takes more than the allowed states or time; use "
                "smaller enums, lengths and repetitions, or fewer alternatives");
  }
}

StateId GrammarBuilder::state() {
  spend(1);
  drafts_.emplace_back();
  return static_cast<StateId>(n_base_states_ + drafts_.size() - 1);
}

StateId GrammarBuilder::guarded_state(Guard guard) {
  const StateId s = state();
  at(s).guard = static_cast<std::int32_t>(tables_.guards.size());
  tables_.guards.push_back(guard);
  return s;
}

void GrammarBuilder::edge(StateId from, Symbol first, Symbol last, StateId to) {
  at(from).edges.push_back({.first = first, .last = last, .target = to});
}

void GrammarBuilder::edge(StateId from, char byte, StateId to) {
  const auto symbol = static_cast<unsigned char>(byte);
  edge(from, symbol, symbol, to);
}

void GrammarBuilder::token(StateId from, TokenId id, StateId to) {
  edge(from, token_symbol(id), token_symbol(id), to);
}

void GrammarBuilder::call(StateId from, std::span<const RuleId> rules, StateId then) {
  spend(rules.size());
  for (const RuleId rule : rules) at(from).calls.push_back({.rule = rule, .then = then});
}

StateId GrammarBuilder::text(StateId from, std::string_view text) {
  for (const char byte : text) {
    const StateId to = state();
    edge(from, byte, to);
    from = to;
  }
  return from;
}

void GrammarBuilder::text(StateId from, std::string_view text, StateId to) {
  HADAL_CHECK(!text.empty());
  const char last = text.back();
  text.remove_suffix(1);
  edge(this->text(from, text), last, to);
}

std::array<StateId, 2> GrammarBuilder::blank(StateId from) {
  return {from, text(from, " ")};
}

std::optional<StateId> GrammarBuilder::known_target(StateId from, unsigned byte) const {
  if (!is_known(from)) return std::nullopt;
  for (const Edge& edge : tables_.edges_of(tables_.states[from])) {
    if (edge.first <= byte && byte <= edge.last) return edge.target;
  }
  return std::nullopt;
}

RuleId GrammarBuilder::rule() {
  spend(1);
  tables_.rules.emplace_back();
  return static_cast<RuleId>(tables_.rules.size() - 1);
}

void GrammarBuilder::set_rule(RuleId id, Rule rule) {
  rule.required.assign((rule.n_properties + 63) / 64, 0);
  for (std::uint32_t i = 0; i < rule.n_properties; ++i) {
    if (rule.needs[i].required) rule.required[i / 64] |= std::uint64_t{1} << (i % 64);
  }
  tables_.rules[id] = std::move(rule);
}

RuleId GrammarBuilder::rule(StateId start) {
  const RuleId id = rule();
  tables_.rules[id].start = start;
  return id;
}

void GrammarBuilder::flatten() {
  for (const Draft& draft : drafts_) {
    const State state{.edges = static_cast<std::uint32_t>(tables_.edges.size()),
                      .n_edges = static_cast<std::uint32_t>(draft.edges.size()),
                      .calls = static_cast<std::uint32_t>(tables_.calls.size()),
                      .n_calls = static_cast<std::uint32_t>(draft.calls.size()),
                      .guard = draft.guard,
                      .accepting = draft.accepting};
    tables_.edges.insert(tables_.edges.end(), draft.edges.begin(), draft.edges.end());
    tables_.calls.insert(tables_.calls.end(), draft.calls.begin(), draft.calls.end());
    tables_.states.push_back(state);
  }
  drafts_.clear();
  drafts_.shrink_to_fit();
}

// The least fixed point, from below: a rule is as high as its highest required need.
void GrammarBuilder::compute_heights() {
  std::vector<Rule>& rules = tables_.rules;
  for (std::size_t id = n_base_rules_; id < rules.size(); ++id) {
    const auto& needs = rules[id].needs;
    const bool waits =
        std::any_of(needs.begin(), needs.end(), [](const Need& need) { return need.required; });
    rules[id].height = waits ? kNever : 0;
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t id = n_base_rules_; id < rules.size(); ++id) {
      if (rules[id].height == 0) continue;
      spend(1);
      std::uint32_t height = 0;
      for (const Need& need : rules[id].needs) {
        if (need.required) height = std::max(height, height_of(rules, need));
      }
      changed |= height < rules[id].height;
      rules[id].height = std::min(rules[id].height, height);
    }
  }
  for (std::size_t id = n_base_rules_; id < rules.size(); ++id) {
    Rule& rule = rules[id];
    rule.absent.assign(rule.required.size(), 0);
    for (std::size_t i = 0; i < rule.needs.size(); ++i) {
      const std::uint32_t height = height_of(rules, rule.needs[i]);
      rule.need_heights.push_back(height);
      if (height < kNever) rule.tallest = std::max(rule.tallest, height);
      if (height >= kNever && i < rule.n_properties) {
        rule.absent[i / 64] |= std::uint64_t{1} << (i % 64);
      }
    }
  }
}

void GrammarBuilder::compute_first(RuleId id, std::vector<char>& done) {
  if (done[id] != 0) return;
  done[id] = 1;
  Rule& rule = tables_.rules[id];
  const State& start = tables_.states[rule.start];
  for (const Edge& edge : tables_.edges_of(start)) {
    for (Symbol s = edge.first; s <= edge.last; ++s) {
      if (s < 256) {
        rule.first_bytes.set(s);
      } else {
        rule.first_tokens.push_back(s);
      }
    }
  }
  for (const Call& call : tables_.calls_of(start)) {
    compute_first(call.rule, done);
    const Rule& callee = tables_.rules[call.rule];
    rule.first_bytes |= callee.first_bytes;
    rule.first_tokens.insert(rule.first_tokens.end(), callee.first_tokens.begin(),
                             callee.first_tokens.end());
  }
}

Tables GrammarBuilder::finish(std::span<const RuleId> roots) {
  flatten();
  compute_heights();
  std::vector<char> done(tables_.rules.size(), 0);
  std::fill_n(done.begin(), n_base_rules_, 1);
  for (RuleId id = 0; id < tables_.rules.size(); ++id) compute_first(id, done);
  for (const RuleId root : roots) {
    if (tables_.rules[root].height + 1 > kMaxDepth) {
      throw Error(ErrorCode::invalid_argument,
                  "the schema admits no value: a required member can never be completed; make it "
                  "optional or give its recursion an end");
    }
  }
  return std::move(tables_);
}

}  // namespace hadal::grammar
