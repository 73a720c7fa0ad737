#include "io/added_tokens.h"

namespace hadal::io {

void AddedTokenTrie::add(std::string_view text, TokenId id) {
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto [child, is_new] = children_.try_emplace(edge(node, static_cast<unsigned char>(c)),
                                                       static_cast<std::uint32_t>(nodes_.size()));
    if (is_new) nodes_.emplace_back();
    node = child->second;
  }
  nodes_[node].id = id;
  starts_[static_cast<unsigned char>(text.front())] = true;
}

void AddedTokenTrie::find_all(std::string_view text, TextSpan span,
                              std::vector<TokenMatch>& matches, std::vector<TextSpan>& rest) const {
  std::size_t done = span.begin;
  std::size_t at = span.begin;
  while (at < span.end) {
    if (!starts_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    TokenMatch longest{{at, at}, -1};
    std::uint32_t node = 0;
    for (std::size_t i = at; i < span.end; ++i) {
      const auto child = children_.find(edge(node, static_cast<unsigned char>(text[i])));
      if (child == children_.end()) break;
      node = child->second;
      if (nodes_[node].id >= 0) longest = {{at, i + 1}, nodes_[node].id};
    }
    if (longest.id < 0) {
      ++at;
      continue;
    }
    if (done < at) rest.push_back({done, at});
    matches.push_back(longest);
    done = at = longest.span.end;
  }
  if (done < span.end) rest.push_back({done, span.end});
}

}  // namespace hadal::io
