#include "io/vocabulary.h"

#include <bit>
#include <cstring>

namespace hadal::io {
namespace {

// Folds the 128-bit product: every bit of either factor reaches every bit of the result.
std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

constexpr std::uint64_t kSeed = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio
constexpr std::uint64_t kMix = 0xD6E8FEB86659FD93u;   // odd, bits well spread

template <class Word>
std::uint64_t load(const char* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// The last 0 to 8 bytes as one number; the loads overlap in the middle, so that none has a length
// known only at run time. Texts of one length give different numbers, and the length is hashed too.
std::uint64_t load_tail(const char* at, std::size_t n) {
  if (n >= 4) return load<std::uint32_t>(at) | load<std::uint32_t>(at + n - 4) << 32;
  if (n == 0) return 0;
  return load<std::uint8_t>(at) | load<std::uint8_t>(at + n / 2) << 8 |
         load<std::uint8_t>(at + n - 1) << 16;
}

}  // namespace

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t h = kSeed ^ bytes.size();
  const char* at = bytes.data();
  std::size_t n = bytes.size();
  for (; n > 8; at += 8, n -= 8) h = fold_multiply(h ^ load<std::uint64_t>(at), kMix);
  return fold_multiply(h ^ load_tail(at, n), kMix ^ kSeed);
}

Vocabulary::Vocabulary(const std::vector<std::string>& bytes_by_id,
                       const std::vector<TokenId>& find_first) {
  ends_.reserve(bytes_by_id.size());
  for (const std::string& bytes : bytes_by_id) {
    arena_ += bytes;
    ends_.push_back(arena_.size());
  }
  slots_.assign(std::bit_ceil(2 * find_first.size() + 1), Slot{0, -1});
  const std::size_t mask = slots_.size() - 1;
  for (const TokenId id : find_first) {
    if (find(bytes(id))) continue;
    const std::uint64_t hash = hash_bytes(bytes(id));
    std::size_t slot = hash & mask;
    while (slots_[slot].id >= 0) slot = (slot + 1) & mask;
    slots_[slot] = {static_cast<std::uint32_t>(hash >> 32), id};
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view wanted, std::uint64_t hash) const {
  const auto tag = static_cast<std::uint32_t>(hash >> 32);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t slot = hash & mask; slots_[slot].id >= 0; slot = (slot + 1) & mask) {
    if (slots_[slot].tag == tag && bytes(slots_[slot].id) == wanted) return slots_[slot].id;
  }
  return std::nullopt;
}

}  // namespace hadal::io
