#include "io/bpe.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

#include "core/error.h"

namespace hadal::io {
namespace {

using ::testing::ElementsAre;

std::array<TokenId, 256> all_bytes() {
  std::array<TokenId, 256> ids;
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  return ids;
}

// The definition, word for word: find the lowest rank present, merge its leftmost pair, repeat.
std::vector<TokenId> encode_by_definition(std::string_view piece,
                                          const std::vector<Merge>& merges) {
  std::vector<TokenId> ids;
  for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
  std::map<std::pair<TokenId, TokenId>, std::size_t> rank_of;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    rank_of[{merges[rank].left, merges[rank].right}] = rank;
  }
  while (true) {
    std::size_t best = merges.size(), best_at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = rank_of.find({ids[i], ids[i + 1]});
      if (it != rank_of.end() && it->second < best) best = it->second, best_at = i;
    }
    if (best == merges.size()) return ids;
    ids[best_at] = merges[best].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

std::vector<TokenId> encode(const Bpe& bpe, std::string_view piece) {
  Bpe::Scratch scratch;
  std::vector<TokenId> ids;
  bpe.encode(piece, scratch, ids);
  return ids;
}

TEST(Bpe, LowestRankFirstThenLeftmost) {
  const Bpe bpe(all_bytes(), std::vector<Merge>{{'b', 'c', 256}, {'a', 'b', 257}, {'a', 'a', 258}});
  EXPECT_THAT(encode(bpe, "abc"), ElementsAre('a', 256));  // bc outranks ab, though it stands later
  EXPECT_THAT(encode(bpe, "abd"), ElementsAre(257, 'd'));
  EXPECT_THAT(encode(bpe, "aaa"), ElementsAre(258, 'a'));
  EXPECT_THAT(encode(bpe, ""), ElementsAre());
  EXPECT_THAT(encode(bpe, "x"), ElementsAre('x'));
}

TEST(Bpe, OfTwoRanksForOnePairTheLaterCounts) {
  const Bpe bpe(all_bytes(), std::vector<Merge>{{'a', 'b', 256}, {'b', 'c', 257}, {'a', 'b', 256}});
  EXPECT_THAT(encode(bpe, "abc"), ElementsAre('a', 257));
}

TEST(Bpe, ScanAndHeapAgreeWithTheDefinition) {
  std::mt19937 random(7);  // fixed seed; mt19937's numbers are the same everywhere
  for (int round = 0; round < 60; ++round) {
    // Merges over two or three letters, so that pairs overlap and repeat as much as they can.
    const unsigned n_letters = 2 + round % 2;
    std::vector<Merge> merges;
    for (TokenId id = 256; id < 256 + 30; ++id) {
      const auto pick = [&]() -> TokenId {
        const auto k =
            static_cast<TokenId>(random() % (n_letters + static_cast<unsigned>(id - 256)));
        return k < static_cast<TokenId>(n_letters) ? 'a' + k
                                                   : 256 + k - static_cast<TokenId>(n_letters);
      };
      const TokenId left = pick(), right = pick();
      const bool seen = std::any_of(merges.begin(), merges.end(), [&](const Merge& m) {
        return m.left == left && m.right == right;
      });
      merges.push_back(seen ? Merge{id, id, id}
                            : Merge{left, right, id});  // {id, id}: never present
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const Bpe bpe(all_bytes(), merges);
    Bpe::Scratch scratch;
    for (int i = 0; i < 40; ++i) {
      std::string piece(random() % 150, ' ');
      for (char& c : piece) c = static_cast<char>('a' + random() % n_letters);
      std::vector<TokenId> scan, heap, either;
      bpe.encode_by_scan(piece, scratch, scan);
      bpe.encode_by_heap(piece, scratch, heap);
      bpe.encode(piece, scratch, either);
      const auto wanted = encode_by_definition(piece, merges);
      ASSERT_EQ(scan, wanted) << "round " << round << ": " << piece;
      ASSERT_EQ(heap, wanted) << "round " << round << ": " << piece;
      ASSERT_EQ(either, wanted) << "round " << round << ": " << piece;
    }
  }
}

TEST(Bpe, AMegabyteOfOneLetterIsNotQuadratic) {
  std::vector<Merge> merges = {{'a', 'a', 256}};
  for (TokenId id = 257; id < 270; ++id) merges.push_back({id - 1, id - 1, id});
  // A run of 2^20 becomes 2^14 at a time; one scan per merge would be 10^12 steps.
  const auto ids = encode(Bpe(all_bytes(), merges), std::string(1 << 20, 'a'));
  EXPECT_EQ(ids, std::vector<TokenId>(64, 269));
}

TEST(Bpe, NamesAByteWithoutAToken) {
  auto byte_ids = all_bytes();
  byte_ids[0xC3] = -1;
  const Bpe bpe(byte_ids, std::vector<Merge>{});
  EXPECT_TRUE(bpe.covers("e"));
  EXPECT_FALSE(bpe.covers("é"));
  try {
    (void)encode(bpe, "é");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::unsupported);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("byte 0xC3"));
  }
}

}  // namespace
}  // namespace hadal::io
