// Checksums, digests, and random bytes that nobody can guess.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace hadal {

// CRC-32C (Castagnoli; reflected, as in iSCSI and ext4). `before` is the CRC of what came before,
// so that crc32c(b, crc32c(a)) is the CRC of a followed by b; any other value works as a seed.
// By the processor's instruction where it has one.  Source: RFC 3720 appendix B.4.
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0);
// The same without the instruction.
[[nodiscard]] std::uint32_t crc32c_portable(std::span<const std::byte> bytes,
                                            std::uint32_t before = 0);

using Sha256Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text))); }
  // Once; the object is used up.
  [[nodiscard]] Sha256Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] Sha256Digest sha256(std::span<const std::byte> bytes);
[[nodiscard]] Sha256Digest sha256(std::string_view text);

// Lower-case hexadecimal digits.
[[nodiscard]] std::string to_hex(std::span<const std::byte> bytes);

// Whether two secrets are equal, in a time that tells neither their content nor the length of
// `expected`.
[[nodiscard]] bool constant_time_equal(std::string_view given, std::string_view expected);

// From the operating system's generator. Throws io when it has none to give.
void random_bytes(std::span<std::byte> into);

}  // namespace hadal
