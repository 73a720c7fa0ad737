// The vocabulary as a tree of bytes, laid out so that a walk is one pass over an array.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/token.h"
#include "io/tokenizer.h"

namespace hadal::grammar {

// Nodes in preorder: what follows a node up to `skip` lies below it.
struct TrieNode {
  static constexpr std::uint32_t kLongest = 255;

  std::uint32_t skip;   // index of the next node that is not below this one
  TokenId token;        // the token that ends with this byte, or -1
  std::uint16_t depth;  // bytes before this one
  std::uint8_t byte;
  std::uint8_t longest = 0;  // bytes of the longest token here or below; kLongest: or more
};

// Tokens with equal bytes become siblings of equal byte, so every token has a node. `tokens` need
// not be sorted; none may be empty.
[[nodiscard]] std::vector<TrieNode> build_trie(
    std::vector<std::pair<std::string_view, TokenId>> tokens);

// The ordinary tokens of a tokenizer. Added tokens are not text: a grammar names them one by one.
// Immutable, shared between threads freely.
class TokenTrie {
 public:
  explicit TokenTrie(io::Tokenizer tokenizer);

  [[nodiscard]] std::span<const TrieNode> nodes() const { return nodes_; }
  [[nodiscard]] const io::Tokenizer& tokenizer() const { return tokenizer_; }
  [[nodiscard]] std::uint32_t longest_token() const { return longest_token_; }  // bytes
  [[nodiscard]] std::int64_t vocab_size() const { return tokenizer_.vocab_size(); }

 private:
  io::Tokenizer tokenizer_;
  std::vector<TrieNode> nodes_;
  std::uint32_t longest_token_ = 0;
};

}  // namespace hadal::grammar
