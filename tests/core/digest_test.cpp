#include "core/digest.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "core/rng.h"

namespace hadal {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST(Crc32c, MatchesPublishedVectors) {
  // RFC 3720 appendix B.4, and the usual check string.
  const std::vector<std::byte> zeros(32, std::byte{0}), ones(32, std::byte{0xff});
  std::vector<std::byte> rising(32), falling(32);
  for (int i = 0; i < 32; ++i) {
    rising[static_cast<std::size_t>(i)] = static_cast<std::byte>(i);
    falling[static_cast<std::size_t>(i)] = static_cast<std::byte>(31 - i);
  }
  for (const auto function : {crc32c, crc32c_portable}) {
    EXPECT_EQ(function(bytes_of("123456789"), 0), 0xE3069283u);
    EXPECT_EQ(function(zeros, 0), 0x8A9136AAu);
    EXPECT_EQ(function(ones, 0), 0x62A8AB43u);
    EXPECT_EQ(function(rising, 0), 0x46DD794Eu);
    EXPECT_EQ(function(falling, 0), 0x113FDB5Cu);
    EXPECT_EQ(function({}, 0), 0u);
  }
}

TEST(Crc32c, InstructionAndTableAgreeAtEveryLengthAndAlignment) {
  Rng rng(1);
  std::vector<std::byte> data(300);
  for (std::byte& b : data) b = static_cast<std::byte>(rng.next_u32());
  for (std::size_t begin = 0; begin < 9; ++begin) {
    for (std::size_t size = 0; begin + size <= data.size(); size += size < 20 ? 1 : 37) {
      const auto part = std::span(data).subspan(begin, size);
      const std::uint32_t seed = rng.next_u32();
      EXPECT_EQ(crc32c(part, seed), crc32c_portable(part, seed)) << begin << ' ' << size;
    }
  }
}

TEST(Crc32c, ContinuesWhereItStopped) {
  const std::string text = "the newest tokens are the ones that a torn write takes";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const std::uint32_t first = crc32c(bytes_of(std::string_view(text).substr(0, cut)), 7);
    EXPECT_EQ(crc32c(bytes_of(std::string_view(text).substr(cut)), first),
              crc32c(bytes_of(text), 7));
  }
}

TEST(Sha256, MatchesPublishedVectors) {
  // FIPS 180-4 examples.
  EXPECT_EQ(to_hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(to_hex(sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 hash;
  hash.update("abcdbcdecdefdefgefghfghighij");
  hash.update("");
  hash.update("hijkijkljklmklmnlmnomnopnopq");
  EXPECT_EQ(to_hex(hash.finish()),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(ConstantTimeEqual, ComparesContentAndLength) {
  EXPECT_TRUE(constant_time_equal("", ""));
  EXPECT_TRUE(constant_time_equal("sk-1234", "sk-1234"));
  EXPECT_FALSE(constant_time_equal("sk-1234", "sk-1235"));
  EXPECT_FALSE(constant_time_equal("sk-123", "sk-1234"));
  EXPECT_FALSE(constant_time_equal(std::string_view("a\0b", 3), "a"));
}

TEST(RandomBytes, FillsAllAndNeverRepeats) {
  std::set<std::string> seen;
  std::array<std::byte, 16> id{};
  for (int i = 0; i < 200; ++i) {
    random_bytes(id);
    seen.insert(to_hex(id));
  }
  EXPECT_EQ(seen.size(), 200u);
  std::vector<std::byte> many(4096);
  random_bytes(many);
  EXPECT_NE(std::vector<std::byte>(many.end() - 64, many.end()), std::vector<std::byte>(64));
}

}  // namespace
}  // namespace hadal
