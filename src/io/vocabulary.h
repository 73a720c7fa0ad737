// Which id stands for which bytes, both ways.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/token.h"

namespace hadal::io {

// A 64-bit hash of short byte strings: fast, not keyed. Tables that take keys from outside must
// bound their probes.
[[nodiscard]] std::uint64_t hash_bytes(std::string_view bytes);

// Immutable once built; shared between threads freely.
class Vocabulary {
 public:
  // One entry per id; where an id has none, `bytes_by_id` is empty. Two ids may have the same
  // bytes: find() then gives the one `find_first` names first. `find_first` lists every id that
  // find() is to know, no id twice.
  Vocabulary(const std::vector<std::string>& bytes_by_id, const std::vector<TokenId>& find_first);

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(ends_.size()); }
  // Empty for an id without an entry. `id` must lie in [0, size()).
  [[nodiscard]] std::string_view bytes(TokenId id) const {
    const auto i = static_cast<std::size_t>(id);
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(arena_).substr(begin, ends_[i] - begin);
  }
  [[nodiscard]] std::optional<TokenId> find(std::string_view bytes) const {
    return find(bytes, hash_bytes(bytes));
  }
  // The same for a caller who has hash_bytes(bytes) already.
  [[nodiscard]] std::optional<TokenId> find(std::string_view bytes, std::uint64_t hash) const;

 private:
  struct Slot {
    std::uint32_t tag;  // high half of the hash
    TokenId id;         // -1: free
  };
  std::string arena_;              // the bytes of all ids, in order of id
  std::vector<std::size_t> ends_;  // by id, into arena_
  std::vector<Slot> slots_;        // linear probing, at most half full
};

}  // namespace hadal::io
