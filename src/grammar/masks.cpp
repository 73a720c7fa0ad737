#include "grammar/masks.h"

#include <algorithm>

namespace hadal::grammar {
namespace {

// Forgotten all at once when there are more; at 129,280 tokens a mask takes 16 KiB.
constexpr std::size_t kMaxMasks = 192, kMaxStateMasks = 512;
constexpr std::size_t kFew = 256;

void allow(MaskWords& words, TokenId id) {
  words[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
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

StateMask Grammar::compute_state_mask(StateId state) const {
  const std::span<const TrieNode> nodes = trie_->nodes();
  Stacks stacks = Stacks::beneath_unknown(tables_, state);
  StateMask mask;
  mask.allowed.resize(static_cast<std::size_t>((trie_->vocab_size() + 63) / 64));
  std::size_t n_allowed = 0;
  PrunedTrie dependent;             // tokens that depend on the callers
  std::uint32_t escaped_until = 0;  // tokens before this node have left the rule on some way
  for (std::uint32_t i = 0; i < nodes.size();) {
    const TrieNode& node = nodes[i];
    dependent.visit(node);
    while (stacks.n_levels() > node.depth + std::size_t{1}) stacks.back();
    const bool alive = stacks.step(node.byte);
    if (stacks.escaped()) escaped_until = std::max(escaped_until, node.skip);
    if (node.token >= 0) {
      const auto ways = stacks.ways();
      const bool is_certain =
          std::any_of(ways.begin(), ways.end(), [](const auto& way) { return !way.tainted; });
      if (is_certain) {
        allow(mask.allowed, node.token);
        ++n_allowed;
      } else if (alive || i < escaped_until) {
        dependent.want();
      }
    }
    i = alive || i < escaped_until ? i + 1 : node.skip;
  }
  mask.reach = stacks.reach();
  mask.dependent = dependent.finish();
  if (n_allowed <= kFew) {
    for (std::size_t w = 0; w < mask.allowed.size(); ++w) {
      for (std::uint64_t bits = mask.allowed[w]; bits != 0; bits &= bits - 1) {
        mask.few.push_back(
            static_cast<TokenId>(w * 64 + static_cast<std::size_t>(__builtin_ctzll(bits))));
      }
    }
    mask.allowed = {};
  }
  return mask;
}

std::shared_ptr<const StateMask> Grammar::state_mask(StateId state) const {
  if (base_ != nullptr && state < base_->tables_.states.size()) return base_->state_mask(state);
  {
    const std::lock_guard lock(mutex_);
    const auto found = state_masks_.find(state);
    if (found != state_masks_.end()) return found->second;
  }
  auto mask = std::make_shared<const StateMask>(compute_state_mask(state));
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
