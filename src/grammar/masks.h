// Which tokens may come next, found by walking the vocabulary, and remembered.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "grammar/grammar.h"
#include "grammar/stacks.h"
#include "grammar/token_trie.h"

namespace hadal::grammar {

using MaskWords = std::vector<std::uint64_t>;

// What a state says of every ordinary token, whatever its rule was called by: allowed, not allowed,
// or (the nodes of `dependent`) only to be told with the callers at hand.
struct StateMask {
  MaskWords allowed;         // empty when `few` has them
  std::vector<TokenId> few;  // the allowed ones
  std::vector<TrieNode> dependent;
  std::uint32_t reach = 0;  // depth, counted from the state's rule, that this relies on
};

// A grammar with its masks. Immutable to look at; the masks are filled in as they are asked for.
// All members may be called from many threads at once.
class Grammar {
 public:
  // `roots` are the rules that Matchers start from. `base`: the grammar that `tables` were built
  // on, whose masks are shared; may be null.
  Grammar(Tables tables, std::vector<RuleId> roots, std::shared_ptr<const TokenTrie> trie,
          std::shared_ptr<const Grammar> base = nullptr);

  [[nodiscard]] const Tables& tables() const { return tables_; }
  [[nodiscard]] const TokenTrie& trie() const { return *trie_; }
  [[nodiscard]] RuleId root(std::size_t i = 0) const { return roots_[i]; }

  [[nodiscard]] std::shared_ptr<const StateMask> state_mask(StateId state) const;
  // The tokens that may follow `stacks`, which stand on one level and are left as they were.
  [[nodiscard]] std::shared_ptr<const MaskWords> mask(Stacks& stacks) const;
  // The same without looking whether it is remembered.
  [[nodiscard]] MaskWords compute_mask(Stacks& stacks) const;

 private:
  struct DigestHash {
    std::size_t operator()(const Stacks::Digest& d) const { return d.a; }
  };
  // Of tokens of so many bytes.
  struct Lengths {
    std::uint32_t first = 0, last = std::numeric_limits<std::uint32_t>::max();
    [[nodiscard]] bool contain(std::size_t n) const { return first <= n && n <= last; }
  };
  [[nodiscard]] StateMask compute_state_mask(StateId state) const;
  [[nodiscard]] StateMask compute_bounded_mask(const BoundedState& bounded,
                                               const StateMask& like) const;
  void walk_unknown(std::span<const TrieNode> nodes, StateId state, Lengths lengths,
                    StateMask& mask) const;
  void walk(std::span<const TrieNode> nodes, Stacks& stacks, MaskWords& allowed) const;

  Tables tables_;
  std::vector<RuleId> roots_;
  std::shared_ptr<const TokenTrie> trie_;
  std::shared_ptr<const Grammar> base_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<StateId, std::shared_ptr<const StateMask>> state_masks_;
  mutable std::unordered_map<Stacks::Digest, std::shared_ptr<const MaskWords>, DigestHash> masks_;
};

}  // namespace hadal::grammar
