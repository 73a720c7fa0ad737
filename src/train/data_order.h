// Shuffling without a list: the place of every item can be asked for by itself.
#pragma once

#include <array>
#include <cstdint>

namespace hadal::train {

// A permutation of [0, n) that depends on the key alone: a Feistel network over Philox, walked
// until it lands inside. Costs nothing to make and to keep, so that an order can be entered
// anywhere. Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", §4 (cycle
// walking).
class Permutation {
 public:
  struct Key {
    std::uint64_t seed;
    std::uint64_t stream;  // which of the seed's permutations
  };
  Permutation(std::int64_t n, Key key);
  // The item at `place`; both in [0, n).
  [[nodiscard]] std::int64_t operator[](std::int64_t place) const;

 private:
  [[nodiscard]] std::uint64_t encrypt(std::uint64_t block) const;

  std::uint64_t n_;
  Key key_;
  int half_bits_;
};

}  // namespace hadal::train
