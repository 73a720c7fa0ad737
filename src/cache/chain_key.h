// Names of prefixes: a chain of keyed hashes, one link a page.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "core/token.h"

namespace hadal::cache {

// Names a page together with everything before it, the model and the cache domain.
struct ChainKey {
  std::array<std::byte, 16> bytes{};
  friend auto operator<=>(const ChainKey&, const ChainKey&) = default;
};
[[nodiscard]] std::string to_string(const ChainKey& key);  // 32 hexadecimal digits

struct ChainKeyHash {
  [[nodiscard]] std::size_t operator()(const ChainKey& key) const {
    std::size_t h;
    std::memcpy(&h, key.bytes.data(), sizeof h);
    return h;
  }
};

// key = the first 128 bits of SHA-256(secret, parent's key, token ids). Who does not know the
// secret can neither compute a key nor make two prompts that share one, and so cannot probe what
// others have asked.  Source: serving.md §5.3.
class ChainHasher {
 public:
  using Secret = std::array<std::byte, 32>;
  // `model` names whatever decides what a token's history holds: weights, numerics, layout.
  ChainHasher(const Secret& secret, std::string_view model);

  // Of no tokens. Prefixes of different domains share nothing.
  [[nodiscard]] ChainKey root(std::string_view domain) const;
  [[nodiscard]] ChainKey next(const ChainKey& parent, std::span<const TokenId> page) const;

  [[nodiscard]] static Secret random_secret();

 private:
  Secret secret_;
  std::string model_;
};

}  // namespace hadal::cache
