#include "train/data_order.h"

#include <bit>

#include "core/error.h"
#include "core/rng.h"

namespace hadal::train {

namespace {
constexpr int kRounds = 6;
constexpr std::uint32_t kPurpose = 0x5348'5546;  // apart from what else draws with the same seed
}  // namespace

Permutation::Permutation(std::int64_t n, Key key) : n_(static_cast<std::uint64_t>(n)), key_(key) {
  HADAL_CHECK(n >= 0);
  const int bits = n_ <= 2 ? 2 : std::bit_width(n_ - 1);
  half_bits_ = (bits + 1) / 2;
}

std::uint64_t Permutation::encrypt(std::uint64_t block) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t left = block >> half_bits_, right = block & mask;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const auto bits = philox4x32(
        {static_cast<std::uint32_t>(right), kPurpose ^ round,
         static_cast<std::uint32_t>(key_.stream), static_cast<std::uint32_t>(key_.stream >> 32)},
        key_.seed);
    const std::uint64_t next = (left ^ bits[0]) & mask;
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

std::int64_t Permutation::operator[](std::int64_t place) const {
  HADAL_CHECK(place >= 0 && static_cast<std::uint64_t>(place) < n_);
  // The network permutes [0, 4^half_bits), less than four times n: few steps lead back inside.
  auto item = static_cast<std::uint64_t>(place);
  do item = encrypt(item);
  while (item >= n_);
  return static_cast<std::int64_t>(item);
}

}  // namespace hadal::train
