#include "grammar/matcher.h"

#include <algorithm>

namespace hadal::grammar {

Matcher::Matcher(std::shared_ptr<const Grammar> grammar, RuleId root)
    : grammar_(std::move(grammar)), stacks_(grammar_->tables(), root) {}

bool Matcher::accept(TokenId token) {
  const io::Tokenizer& tokenizer = grammar_->trie().tokenizer();
  if (!tokenizer.is_added(token)) return accept_text(tokenizer.token_bytes(token));
  const bool alive = stacks_.step(token_symbol(token));
  if (alive) stacks_.commit();
  return alive;
}

bool Matcher::accept_text(std::string_view bytes) {
  for (const char byte : bytes) {
    if (!stacks_.step(static_cast<unsigned char>(byte))) return false;
  }
  stacks_.commit();
  return true;
}

void Matcher::fill(TokenMask& mask) {
  const std::shared_ptr<const MaskWords> allowed = grammar_->mask(stacks_);
  const std::span<std::uint64_t> words = mask.words();
  const std::size_t n = std::min(words.size(), allowed->size());
  std::copy_n(allowed->begin(), n, words.begin());
  std::fill(words.begin() + static_cast<std::ptrdiff_t>(n), words.end(), 0);
}

}  // namespace hadal::grammar
