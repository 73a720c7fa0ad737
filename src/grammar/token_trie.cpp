#include "grammar/token_trie.h"

#include <algorithm>

#include "core/error.h"

namespace hadal::grammar {

std::vector<TrieNode> build_trie(std::vector<std::pair<std::string_view, TokenId>> tokens) {
  std::sort(tokens.begin(), tokens.end());
  std::vector<TrieNode> nodes;
  std::vector<std::uint32_t> path;  // open nodes, by depth
  std::string_view spelt;           // what they spell
  const auto close_to = [&](std::size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      TrieNode& node = nodes[path.back()];
      node.skip = static_cast<std::uint32_t>(nodes.size());
      if (path.size() < 2) continue;
      TrieNode& above = nodes[path[path.size() - 2]];
      above.longest = std::max(above.longest, node.longest);
    }
  };
  const auto push = [&](std::string_view bytes, std::size_t depth, TokenId token) {
    nodes.push_back({.skip = static_cast<std::uint32_t>(nodes.size() + 1),
                     .token = token,
                     .depth = static_cast<std::uint16_t>(depth),
                     .byte = static_cast<std::uint8_t>(bytes[depth]),
                     .longest = static_cast<std::uint8_t>(
                         std::min<std::size_t>(token >= 0 ? depth + 1 : 0, TrieNode::kLongest))});
  };
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::string_view bytes = tokens[i].first;
    HADAL_CHECK(!bytes.empty() && bytes.size() < 65536);
    const auto shared = std::mismatch(bytes.begin(), bytes.end(), spelt.begin(), spelt.end());
    close_to(static_cast<std::size_t>(shared.first - bytes.begin()));
    for (std::size_t depth = path.size(); depth + 1 < bytes.size(); ++depth) {
      path.push_back(static_cast<std::uint32_t>(nodes.size()));
      push(bytes, depth, -1);
    }
    // All but the last of equal tokens are leaves in front of the node that carries on.
    for (; i + 1 < tokens.size() && tokens[i + 1].first == bytes; ++i) {
      push(bytes, bytes.size() - 1, tokens[i].second);
    }
    path.push_back(static_cast<std::uint32_t>(nodes.size()));
    push(bytes, bytes.size() - 1, tokens[i].second);
    spelt = bytes;
  }
  close_to(0);
  return nodes;
}

TokenTrie::TokenTrie(io::Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {
  std::vector<std::pair<std::string_view, TokenId>> tokens;
  for (TokenId id = 0; id < tokenizer_.vocab_size(); ++id) {
    if (tokenizer_.is_added(id)) continue;
    try {
      tokens.emplace_back(tokenizer_.token_bytes(id), id);
    } catch (const Error&) {
      continue;  // ids may have gaps
    }
  }
  for (const auto& [bytes, id] : tokens) {
    longest_token_ = std::max(longest_token_, static_cast<std::uint32_t>(bytes.size()));
  }
  nodes_ = build_trie(std::move(tokens));
}

}  // namespace hadal::grammar
