// Finds the tokens that are looked for in raw text before anything else: <｜User｜> and its kind.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/token.h"

namespace hadal::io {

struct TextSpan {
  std::size_t begin, end;  // bytes
};

struct TokenMatch {
  TextSpan span;
  TokenId id;
};

// A trie of token texts. Immutable after the last add() and shared between threads freely.
class AddedTokenTrie {
 public:
  // `text` is not empty and was not added before.
  void add(std::string_view text, TokenId id);
  [[nodiscard]] bool empty() const { return nodes_.size() == 1; }

  // Matches that lie inside `span`, leftmost first and the longest at each position, appended to
  // `matches`; what remains of the span between them, never empty, appended to `rest`.
  void find_all(std::string_view text, TextSpan span, std::vector<TokenMatch>& matches,
                std::vector<TextSpan>& rest) const;

 private:
  struct Node {
    TokenId id = -1;  // of the text that ends here
  };
  static std::uint64_t edge(std::uint32_t node, unsigned char byte) {
    return static_cast<std::uint64_t>(node) << 8 | byte;
  }
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::unordered_map<std::uint64_t, std::uint32_t> children_;
  std::array<bool, 256> starts_{};  // bytes some text begins with
};

}  // namespace hadal::io
