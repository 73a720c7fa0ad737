#include "io/piece_encoder.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace hadal::io {

PieceCache::PieceCache() : slots_(kSlots) {}

bool PieceCache::append_known(std::string_view piece, std::uint64_t hash,
                              std::vector<TokenId>& out) const {
  const Slot& slot = slots_[hash % kSlots];
  if (slot.tag != static_cast<std::uint32_t>(hash >> 32) || slot.nbytes != piece.size() ||
      std::memcmp(slot.piece.data(), piece.data(), piece.size()) != 0) {
    return false;
  }
  out.insert(out.end(), slot.ids.begin(), slot.ids.begin() + slot.n_ids);
  return true;
}

void PieceCache::remember(std::string_view piece, std::uint64_t hash, const TokenId* ids,
                          std::size_t n) {
  if (piece.size() > kMaxPieceBytes || n > kMaxTokens) return;
  Slot& slot = slots_[hash % kSlots];
  slot.tag = static_cast<std::uint32_t>(hash >> 32);
  slot.nbytes = static_cast<std::uint8_t>(piece.size());
  slot.n_ids = static_cast<std::uint8_t>(n);
  std::copy(piece.begin(), piece.end(), slot.piece.begin());
  std::copy(ids, ids + n, slot.ids.begin());
}

PieceEncoder::PieceEncoder(const Vocabulary& vocabulary, const std::vector<TokenId>& byte_level,
                           Bpe bpe, bool ignore_merges)
    : vocabulary_(vocabulary),
      bpe_(std::move(bpe)),
      is_whole_(static_cast<std::size_t>(vocabulary.size()), 0) {
  Bpe::Scratch scratch;
  std::vector<TokenId> ids;
  for (const TokenId id : byte_level) {
    bool whole = ignore_merges;
    if (!whole && bpe_.covers(vocabulary.bytes(id))) {
      ids.clear();
      bpe_.encode(vocabulary.bytes(id), scratch, ids);
      whole = ids.size() == 1 && ids.front() == id;
    }
    is_whole_[static_cast<std::size_t>(id)] = whole;
  }
}

void PieceEncoder::encode(std::string_view piece, Scratch& scratch,
                          std::vector<TokenId>& out) const {
  const std::uint64_t hash = hash_bytes(piece);
  // The cache first: one line of memory, where the vocabulary takes several.
  if (scratch.cache.append_known(piece, hash, out)) return;
  const std::size_t before = out.size();
  if (const auto id = vocabulary_.find(piece, hash);
      id && is_whole_[static_cast<std::size_t>(*id)]) {
    out.push_back(*id);
  } else {
    bpe_.encode(piece, scratch.bpe, out);
  }
  scratch.cache.remember(piece, hash, out.data() + before, out.size() - before);
}

}  // namespace hadal::io
