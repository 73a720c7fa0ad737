// From a piece of text to its tokens, by the shortest way that gives what BPE gives.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/token.h"
#include "io/bpe.h"
#include "io/vocabulary.h"

namespace hadal::io {

// Remembers the tokens of short pieces. One slot per hash: a newcomer evicts whoever is there, so
// neither size nor cost depends on the text. Not for use by two threads at once.
class PieceCache {
 public:
  PieceCache();

  // Appends the tokens of `piece` and returns true if they are known.
  bool append_known(std::string_view piece, std::uint64_t hash, std::vector<TokenId>& out) const;
  void remember(std::string_view piece, std::uint64_t hash, const TokenId* ids, std::size_t n);

 private:
  static constexpr std::size_t kMaxPieceBytes = 26;
  static constexpr std::size_t kMaxTokens = 8;
  static constexpr std::size_t kSlots = 1 << 14;
  struct alignas(64) Slot {  // one cache line
    std::uint32_t tag = 0;
    std::uint8_t nbytes = 0;  // 0: free
    std::uint8_t n_ids = 0;
    std::array<char, kMaxPieceBytes> piece;
    std::array<TokenId, kMaxTokens> ids;
  };
  static_assert(sizeof(Slot) == 64);
  std::vector<Slot> slots_;
};

// Immutable after construction and shared between threads freely, with a scratch for each.
class PieceEncoder {
 public:
  // `vocabulary` must outlive this. byte_level: the ids whose bytes BPE can produce.
  // ignore_merges: a piece that is such a token is that token, whatever merging would give.
  PieceEncoder(const Vocabulary& vocabulary, const std::vector<TokenId>& byte_level, Bpe bpe,
               bool ignore_merges);

  struct Scratch {
    Bpe::Scratch bpe;
    PieceCache cache;
  };
  // Appends the tokens of `piece`, which is not empty. Throws as Bpe::encode.
  void encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>& out) const;

 private:
  const Vocabulary& vocabulary_;
  Bpe bpe_;
  std::vector<std::uint8_t> is_whole_;  // by id: its bytes, alone, encode to just itself
};

}  // namespace hadal::io
