#include "grammar/masks.h"

#include <algorithm>
#include <bit>

namespace hadal::grammar {
namespace {

// Forgotten all at once when there are more; at 129,280 tokens a mask takes 16 KiB.
constexpr std::size_t kMaxMasks = 192, kMaxStateMasks = 512;
constexpr std::size_t kFew = 256;

void allow(MaskWords& words, TokenId id) {
  words[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
}

void set(MaskWords& words, TokenId id, bool allowed) {
  const std::uint64_t bit = std::uint64_t{1} << (id % 64);
  std::uint64_t& word = words[static_cast<std::size_t>(id) / 64];
  word = allowed ? word | bit : word & ~bit;
}

// Keeps a short list in place of many zeros.
void shrink(StateMask& mask) {
  std::size_t n = 0;
  for (const std::uint64_t word : mask.allowed) n += static_cast<std::size_t>(std::popcount(word));
  if (n > kFew) return;
  for (std::size_t w = 0; w < mask.allowed.size(); ++w) {
    for (std::uint64_t bits = mask.allowed[w]; bits != 0; bits &= bits - 1) {
      mask.few.push_back(
          static_cast<TokenId>(w * 64 + static_cast<std::size_t>(std::countr_zero(bits))));
    }
  }
  mask.allowed = {};
}

// Nodes that are wanted, with those above them, as a trie of their own. A walk shows it every node
// that it comes to.
class PrunedTrie {
 public:
  void visit(const TrieNode& node) {
    close_to(node.depth);
    path_.resize(node.depth);
    path_.push_back(&node);
  }
  // The node visited last.
  void want() {
    for (std::size_t depth = written_.size(); depth < path_.size(); ++depth) {
      written_.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back(*path_[depth]);
      if (depth + 1 < path_.size()) nodes_.back().token = -1;
    }
  }
  [[nodiscard]] std::vector<TrieNode> finish() {
    close_to(0);
    nodes_.shrink_to_fit();
    return std::move(nodes_);
  }

 private:
  void close_to(std::size_t depth) {
    for (; written_.size() > depth; written_.pop_back()) {
      nodes_[written_.back()].skip = static_cast<std::uint32_t>(nodes_.size());
    }
  }

  std::vector<TrieNode> nodes_;
  std::vector<const TrieNode*> path_;   // to the node visited last
  std::vector<std::uint32_t> written_;  // the first of these, in nodes_
};

}  // namespace

Grammar::Grammar(Tables tables, std::vector<RuleId> roots, std::shared_ptr<const TokenTrie> trie,
                 std::shared_ptr<const Grammar> base)
    : tables_(std::move(tables)),
      roots_(std::move(roots)),
      trie_(std::move(trie)),
      base_(std::move(base)) {}

// Looks at the tokens of these lengths among `nodes` and writes what `state` says of them into
// `mask`, whose `allowed` is there. Of other tokens nothing changes.
void Grammar::walk_unknown(std::span<const TrieNode> nodes, StateId state, Lengths lengths,
                           StateMask& mask) const {
  Stacks stacks = Stacks::beneath_unknown(tables_, state);
  PrunedTrie dependent;             // tokens that depend on the callers
  std::uint32_t escaped_until = 0;  // tokens before this node have left the rule on some way
  for (std::uint32_t i = 0; i < nodes.size();) {
    const TrieNode& node = nodes[i];
    if (node.longest < std::min(lengths.first, TrieNode::kLongest)) {
      i = node.skip;
      continue;
    }
    dependent.visit(node);
    while (stacks.n_levels() > node.depth + std::size_t{1}) stacks.back();
    const bool alive = stacks.step(node.byte);
    if (stacks.escaped()) escaped_until = std::max(escaped_until, node.skip);
    if (node.token >= 0 && lengths.contain(node.depth + std::size_t{1})) {
      const auto ways = stacks.ways();
      const bool is_certain =
          std::any_of(ways.begin(), ways.end(), [](const auto& way) { return !way.tainted; });
      set(mask.allowed, node.token, is_certain);
      if (!is_certain && (alive || i < escaped_until)) dependent.want();
    }
    if (alive || i < escaped_until) {
      ++i;
      continue;
    }
    // Only a mask that was taken over for shorter tokens has anything to take back here.
    for (++i; lengths.first > 0 && i < node.skip; ++i) {
      const TrieNode& below = nodes[i];
      const bool is_meant = below.token >= 0 && lengths.contain(below.depth + std::size_t{1});
      if (is_meant) set(mask.allowed, below.token, false);
    }
    i = node.skip;
  }
  mask.reach = std::max(mask.reach, stacks.reach());
  const auto offset = static_cast<std::uint32_t>(mask.dependent.size());
  for (TrieNode node : dependent.finish()) {
    node.skip += offset;
    mask.dependent.push_back(node);
  }
}

StateMask Grammar::compute_state_mask(StateId state) const {
  StateMask mask;
  mask.allowed.resize(static_cast<std::size_t>((trie_->vocab_size() + 63) / 64));
  walk_unknown(trie_->nodes(), state, {}, mask);
  shrink(mask);
  return mask;
}

// Tokens that may meet the bound are looked at; of the others, those that would end the text, if
// that may be too early. The rest is as in the unbounded text.
StateMask Grammar::compute_bounded_mask(const BoundedState& bounded, const StateMask& like) const {
  StateMask mask;
  mask.allowed = like.allowed;
  mask.allowed.resize(static_cast<std::size_t>((trie_->vocab_size() + 63) / 64));
  for (const TokenId id : like.few) set(mask.allowed, id, true);
  mask.reach = like.reach;
  walk_unknown(like.dependent, bounded.state, {.last = bounded.n_bytes}, mask);
  if (bounded.n_bytes < trie_->longest_token()) {
    walk_unknown(trie_->nodes(), bounded.state, {.first = bounded.n_bytes + 1}, mask);
  }
  mask.dependent.shrink_to_fit();
  shrink(mask);
  return mask;
}

std::shared_ptr<const StateMask> Grammar::state_mask(StateId state) const {
  if (base_ != nullptr && state < base_->tables_.states.size()) return base_->state_mask(state);
  const BoundedState* bounded = tables_.find_bounded(state);
  std::shared_ptr<const StateMask> like;
  if (bounded != nullptr && bounded->n_bytes > 0) {
    like = state_mask(bounded->like);
    if (bounded->may_end && bounded->n_bytes >= trie_->longest_token()) return like;
  }
  {
    const std::lock_guard lock(mutex_);
    const auto found = state_masks_.find(state);
    if (found != state_masks_.end()) return found->second;
  }
  auto mask = std::make_shared<const StateMask>(
      like != nullptr ? compute_bounded_mask(*bounded, *like) : compute_state_mask(state));
  const std::lock_guard lock(mutex_);
  if (state_masks_.size() >= kMaxStateMasks) state_masks_.clear();
  return state_masks_.emplace(state, std::move(mask)).first->second;
}

void Grammar::walk(std::span<const TrieNode> nodes, Stacks& stacks, MaskWords& allowed) const {
  const std::size_t base = stacks.n_levels();
  for (std::uint32_t i = 0; i < nodes.size();) {
    const TrieNode& node = nodes[i];
    while (stacks.n_levels() > base + node.depth) stacks.back();
    if (!stacks.step(node.byte)) {
      i = node.skip;
      continue;
    }
    if (node.token >= 0) allow(allowed, node.token);
    ++i;
  }
  while (stacks.n_levels() > base) stacks.back();
}

MaskWords Grammar::compute_mask(Stacks& stacks) const {
  MaskWords allowed(static_cast<std::size_t>((trie_->vocab_size() + 63) / 64));
  const std::vector<Stacks::Way> ways(stacks.ways().begin(), stacks.ways().end());
  std::vector<Symbol> tokens;
  for (const Stacks::Way& way : ways) {
    const std::shared_ptr<const StateMask> known = state_mask(way.state);
    stacks.narrow(way);
    if (stacks.depth(way) + known->reach <= kMaxDepth) {
      for (std::size_t w = 0; w < known->allowed.size(); ++w) allowed[w] |= known->allowed[w];
      for (const TokenId id : known->few) allow(allowed, id);
      walk(known->dependent, stacks, allowed);
    } else {
      walk(trie_->nodes(), stacks, allowed);
    }
    stacks.back();

    const State& state = tables_.states[way.state];
    for (const Edge& edge : tables_.edges_of(state)) {
      if (edge.first >= kTokenSymbol) tokens.push_back(edge.first);
    }
    for (const Call& call : tables_.calls_of(state)) {
      const auto& first = tables_.rules[call.rule].first_tokens;
      tokens.insert(tokens.end(), first.begin(), first.end());
    }
  }
  for (const Symbol token : tokens) {
    if (stacks.step(token)) allow(allowed, static_cast<TokenId>(token - kTokenSymbol));
    stacks.back();
  }
  return allowed;
}

std::shared_ptr<const MaskWords> Grammar::mask(Stacks& stacks) const {
  const Stacks::Digest digest = stacks.digest();
  {
    const std::lock_guard lock(mutex_);
    const auto found = masks_.find(digest);
    if (found != masks_.end()) return found->second;
  }
  auto mask = std::make_shared<const MaskWords>(compute_mask(stacks));
  const std::lock_guard lock(mutex_);
  if (masks_.size() >= kMaxMasks) masks_.clear();
  return masks_.emplace(digest, std::move(mask)).first->second;
}

}  // namespace hadal::grammar
