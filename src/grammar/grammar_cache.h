// Compiled grammars, kept for the next request that asks for the same.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "grammar/json_rules.h"
#include "grammar/masks.h"
#include "grammar/token_trie.h"

namespace hadal::grammar {

// How a value inside tags ends: `before`, then the mark, then `after`. Where the vocabulary has no
// token of its own for the mark, its bytes are meant.
struct TagCloser {
  std::string before, mark, after;
  std::optional<TokenId> mark_token;

  void add(GrammarBuilder& builder, StateId from, StateId to) const;  // `after` is not empty
};

// What most grammars share, with masks that are computed once.
struct CommonRules {
  std::shared_ptr<const Grammar> grammar;
  JsonRules json;          // anywhere
  JsonRules json_in_tags;  // never spells the closer
  RuleId text_in_tags;     // any text, and the closer
};

// For one tokenizer. All members may be called from many threads at once.
class GrammarCache {
 public:
  explicit GrammarCache(const io::Tokenizer& tokenizer, std::size_t capacity = 64);

  [[nodiscard]] const std::shared_ptr<const TokenTrie>& trie() const { return trie_; }
  [[nodiscard]] const CommonRules& common(const TagCloser& closer);

  using Make = std::function<std::shared_ptr<const Grammar>()>;
  // The grammar of that name, made by `make` if it is new; the one used longest ago is forgotten
  // for it. What `make` throws is thrown, and nothing kept.
  [[nodiscard]] std::shared_ptr<const Grammar> get(const std::string& key, const Make& make);
  [[nodiscard]] std::size_t size() const;

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
  };
  std::shared_ptr<const TokenTrie> trie_;
  std::size_t capacity_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // the last used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_key_;
  std::map<std::string, CommonRules> common_;
};

}  // namespace hadal::grammar
