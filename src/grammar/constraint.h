// grammar: which tokens may come next, when an answer has to have a form.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/token.h"

namespace hadal::grammar {

// One bit a token of the vocabulary: may it come next?
class TokenMask {
 public:
  explicit TokenMask(std::int64_t vocab_size)
      : vocab_size_(vocab_size), words_(static_cast<std::size_t>((vocab_size + 63) / 64)) {}
  [[nodiscard]] std::int64_t vocab_size() const { return vocab_size_; }
  void clear() { words_.assign(words_.size(), 0); }
  void allow(TokenId id) {
    words_[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (id % 64);
  }
  void forbid(TokenId id) {
    words_[static_cast<std::size_t>(id) / 64] &= ~(std::uint64_t{1} << (id % 64));
  }
  [[nodiscard]] bool allows(TokenId id) const {
    return ((words_[static_cast<std::size_t>(id) / 64] >> (id % 64)) & 1U) != 0;
  }
  [[nodiscard]] std::span<std::uint64_t> words() { return words_; }
  [[nodiscard]] std::span<const std::uint64_t> words() const { return words_; }

 private:
  std::int64_t vocab_size_;
  std::vector<std::uint64_t> words_;
};

// The form that one answer must have, and where in it the answer stands. A pure function of the
// tokens accepted so far: whoever resumes an answer accepts its tokens again. Not for two threads
// at once; different constraints (also of one grammar) are independent.
class Constraint {
 public:
  virtual ~Constraint() = default;
  // Writes which tokens may come next and returns true; or returns false when any may, and leaves
  // `mask` alone. At least one token is always allowed: where the form is complete, the tokens that
  // end the answer are.
  [[nodiscard]] virtual bool fill(TokenMask& mask) = 0;
  // The token that was drawn. One that fill() forbids ends the form: everything is allowed from
  // there on (it can only come from a resumed answer of another configuration).
  virtual void accept(TokenId token) = 0;
  // The same position, for looking ahead along drafts.
  [[nodiscard]] virtual std::unique_ptr<Constraint> clone() const = 0;
};

}  // namespace hadal::grammar
