// Byte-pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/token.h"

namespace hadal::io {

struct Merge {
  TokenId left, right;  // these two, adjacent,
  TokenId merged;       // become this one
};

// Starts from one token per byte and applies the merge of the lowest rank present, leftmost first,
// until none is left. Immutable after construction and shared between threads freely.
// Source: Sennrich et al. 2016, §3.2, over bytes as in GPT-2.
class Bpe {
 public:
  // byte_ids: the token of each byte, -1 where the vocabulary has none. merges: by rank, the most
  // urgent first; of two with the same pair the later one counts, as in Hugging Face's reader.
  Bpe(const std::array<TokenId, 256>& byte_ids, std::span<const Merge> merges);

  // Whether every byte of `piece` has a token, so that encode() will not throw unsupported.
  [[nodiscard]] bool covers(std::string_view piece) const;

  // Room to work in, kept from call to call. One per thread.
  struct Scratch {
    std::vector<TokenId> ids;
    std::vector<std::uint32_t> ranks;  // of the pair that begins at a position
    std::vector<std::uint32_t> next, previous;
    std::vector<std::uint64_t> heap;
  };

  // Appends the tokens of `piece` to `out`: in time n log n for n bytes. Throws Error unsupported
  // when the vocabulary has no token for one of its bytes, invalid_argument from 4 GiB on.
  void encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>& out) const;

  // The same tokens by one scan over all pairs per merge: no set-up, but quadratic. What encode()
  // does with short pieces, and what its long way is tested against.
  void encode_by_scan(std::string_view piece, Scratch& scratch, std::vector<TokenId>& out) const;
  // The same tokens with a heap of pairs and a linked list of symbols.
  void encode_by_heap(std::string_view piece, Scratch& scratch, std::vector<TokenId>& out) const;

 private:
  static constexpr std::uint32_t kNoMerge = UINT32_MAX;
  struct Slot {
    std::uint64_t pair;  // left in the high half; all ones: free
    std::uint32_t rank;
    TokenId merged;
  };
  struct Found {
    std::uint32_t rank;  // kNoMerge: these two do not merge
    TokenId merged;
  };
  [[nodiscard]] Found find(TokenId left, TokenId right) const;
  [[nodiscard]] std::uint32_t rank(TokenId left, TokenId right) const {
    return find(left, right).rank;
  }
  [[nodiscard]] static std::uint64_t key(TokenId left, TokenId right);
  [[nodiscard]] std::size_t home(std::uint64_t pair) const;
  void load_bytes(std::string_view piece, std::vector<TokenId>& ids) const;

  std::array<TokenId, 256> byte_ids_;
  std::vector<Slot> slots_;  // linear probing, at most half full
  unsigned shift_;           // 64 - log2(slots)
};

}  // namespace hadal::io
