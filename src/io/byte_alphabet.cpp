#include "io/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace hadal::io {
namespace {

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr unsigned kFirstSubstitute = 0x100;
constexpr unsigned kNumSubstitutes = 68;

struct Alphabet {
  std::array<std::uint16_t, 256> code_point{};                          // by byte
  std::array<std::int16_t, kFirstSubstitute + kNumSubstitutes> byte{};  // by code point, -1: none
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& entry : alphabet.byte) entry = -1;
  unsigned substitute = kFirstSubstitute;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const unsigned code_point = stands_for_itself(byte) ? byte : substitute++;
    alphabet.code_point[byte] = static_cast<std::uint16_t>(code_point);
    alphabet.byte[code_point] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (std::size_t i = 0; i < spelling.size(); ++i) {
    unsigned code_point = static_cast<unsigned char>(spelling[i]);
    if (code_point >= 0x80) {
      // The alphabet ends at U+0143, so two bytes are all a character of it can take.
      if (code_point < 0xC2 || code_point > 0xDF || i + 1 == spelling.size()) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (static_cast<unsigned char>(spelling[++i]) & 0x3F);
    }
    if (code_point >= kAlphabet.byte.size() || kAlphabet.byte[code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte[code_point]);
  }
  return bytes;
}

std::string spelling_of_byte(unsigned char byte) {
  const unsigned code_point = kAlphabet.code_point[byte];
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

}  // namespace hadal::io
