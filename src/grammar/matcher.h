// One text on its way through a grammar.
#pragma once

#include <memory>
#include <string_view>

#include "grammar/constraint.h"
#include "grammar/masks.h"

namespace hadal::grammar {

// Copies are independent and cheap: a few hundred bytes and a shared grammar.
class Matcher {
 public:
  Matcher(std::shared_ptr<const Grammar> grammar, RuleId root);

  // Takes the text further. False when the grammar does not allow it; the matcher is used up then.
  [[nodiscard]] bool accept(TokenId token);
  [[nodiscard]] bool accept_text(std::string_view bytes);
  // Writes the tokens that may follow; none at all where the text is complete and cannot grow.
  void fill(TokenMask& mask);
  // The text is a whole one.
  [[nodiscard]] bool complete() const { return stacks_.complete(); }

 private:
  std::shared_ptr<const Grammar> grammar_;
  Stacks stacks_;
};

}  // namespace hadal::grammar
