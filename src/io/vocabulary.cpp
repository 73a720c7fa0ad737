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

std::uint64_t load(const char* at, std::size_t n) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, n);
  return word;
}

}  // namespace

std::uint64_t hash_bytes(std::string_view bytes) {
  std::uint64_t h = kSeed ^ bytes.size();
  const char* at = bytes.data();
  std::size_t n = bytes.size();
  for (; n > 8; at += 8, n -= 8) h = fold_multiply(h ^ load(at, 8), kMix);
  return fold_multiply(h ^ load(at, n), kMix ^ kSeed);
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
