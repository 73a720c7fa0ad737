#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/token.h"

namespace hadal::model {

// Tokens of one forward pass, packed: prefill, decoding, draft verification and several requests
// at once differ in this struct and in nothing else.
struct TokenBatch {
  struct Sequence {
    std::int64_t begin = 0, end = 0;  // rows
    std::int64_t start = 0;           // position of row `begin`; rows are consecutive positions
    std::int64_t slot = 0;            // which sequence of the KvState
  };
  std::vector<TokenId> token_ids;
  std::vector<std::int64_t> positions;
  std::vector<Sequence> sequences;

  [[nodiscard]] std::int64_t n_tokens() const {
    return static_cast<std::int64_t>(token_ids.size());
  }

  // Appends the tokens of one sequence.
  void add(std::span<const TokenId> ids, std::int64_t start, std::int64_t slot) {
    const std::int64_t begin = n_tokens();
    token_ids.insert(token_ids.end(), ids.begin(), ids.end());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      positions.push_back(start + static_cast<std::int64_t>(i));
    }
    sequences.push_back({begin, n_tokens(), start, slot});
  }
};

}  // namespace hadal::model
