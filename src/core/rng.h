// Counter-based random bits: (seed, stream, counter) -> bits, the same on every device, with no
// state to save. Whoever resumes at a counter continues the sequence exactly.
#pragma once

#include <array>
#include <cstdint>

namespace hadal {

// Philox4x32-10.  Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as
// 1, 2, 3"; the constants are the paper's.
[[nodiscard]] inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                             std::uint64_t seed) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {
        static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// 32 bits to (0, 1): never 0 and never 1, so that log() is finite.
[[nodiscard]] inline float uniform_open(std::uint32_t random_bits) {
  return (static_cast<float>(random_bits >> 9) + 0.5f) * 0x1p-23f;
}

// A sequential view of one stream, for tests and weight initialisation.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint32_t stream = 0) : seed_(seed), stream_(stream) {}
  [[nodiscard]] std::uint32_t next_u32();
  [[nodiscard]] float next_uniform() { return uniform_open(next_u32()); }
  [[nodiscard]] float next_normal();                        // mean 0, variance 1
  [[nodiscard]] std::uint32_t next_below(std::uint32_t n);  // 0 .. n-1

 private:
  std::uint64_t seed_;
  std::uint32_t stream_;
  std::uint64_t counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  unsigned used_ = 4;
};

}  // namespace hadal
