// Rows hold every piece once and are as full as best fit makes them; orders are permutations.
#include "train/packer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "train/data_order.h"

namespace hadal::train {
namespace {

using ::testing::ElementsAre;

std::vector<Piece> pieces_of_lengths(const std::vector<std::int64_t>& lengths) {
  std::vector<Piece> pieces;
  for (const std::int64_t n : lengths) pieces.push_back({std::ssize(pieces), 0, n});
  return pieces;
}

std::vector<std::vector<std::int64_t>> lengths_of(const PackedRows& rows) {
  std::vector<std::vector<std::int64_t>> out;
  for (std::int64_t r = 0; r < rows.n_rows(); ++r) {
    out.emplace_back();
    for (const Piece& piece : rows.row(r)) out.back().push_back(piece.n_tokens);
  }
  return out;
}

TEST(Packer, PutsThePieceWhereItFitsBest) {
  const auto rows =
      pack_best_fit(pieces_of_lengths({3, 6, 4, 10, 7, 1, 5}), {.sequence_length = 10});
  // 10 | 7 3 | 6 4 | 5 1: the 3 goes to the 7 and the 4 to the 6, though both would fit elsewhere.
  EXPECT_THAT(lengths_of(rows), ElementsAre(ElementsAre(10), ElementsAre(7, 3), ElementsAre(6, 4),
                                            ElementsAre(5, 1)));
}

TEST(Packer, RoundsPiecesUpToTheAlignment) {
  const auto rows =
      pack_best_fit(pieces_of_lengths({5, 5, 4}), {.sequence_length = 12, .alignment = 4});
  EXPECT_THAT(lengths_of(rows), ElementsAre(ElementsAre(5, 4), ElementsAre(5)));
}

TEST(Packer, CutsWhatIsLonger) {
  std::vector<Piece> pieces;
  cut_document(7, 0, 25, 10, pieces);
  cut_document(8, 3, 3, 10, pieces);
  cut_document(9, 3, 13, 10, pieces);
  EXPECT_THAT(pieces,
              ElementsAre(Piece{7, 0, 10}, Piece{7, 10, 10}, Piece{7, 20, 5}, Piece{9, 3, 10}));
}

TEST(Packer, HoldsEveryPieceOnceInRowsThatFit) {
  std::mt19937 random(3);
  for (const std::int64_t alignment : {1, 4}) {
    for (const std::int64_t length : {4, 64, 1024}) {
      std::vector<std::int64_t> lengths(500);
      for (auto& n : lengths) n = 1 + static_cast<std::int64_t>(random()) % length;
      const auto rows = pack_best_fit(pieces_of_lengths(lengths),
                                      {.sequence_length = length, .alignment = alignment});
      std::multiset<std::int64_t> seen;
      std::int64_t rounded = 0;
      for (std::int64_t r = 0; r < rows.n_rows(); ++r) {
        std::int64_t used = 0;
        for (const Piece& piece : rows.row(r)) {
          seen.insert(piece.document);
          used += (piece.n_tokens + alignment - 1) / alignment * alignment;
        }
        EXPECT_LE(used, length);
        EXPECT_GT(used, 0);
        rounded += used;
      }
      EXPECT_EQ(seen.size(), 500U);
      EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), 500U);
      // At most a row is half empty: two such would have been one.
      EXPECT_LE(rows.n_rows(), 2 * rounded / length + 1);
    }
  }
  EXPECT_EQ(pack_best_fit({}, {.sequence_length = 8}).n_rows(), 0);
}

TEST(Permutation, IsOne) {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 16, 17, 100, 1023, 4097}) {
    const Permutation order(n, {5, 1});
    std::vector<bool> seen(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t item = order[i];
      ASSERT_GE(item, 0);
      ASSERT_LT(item, n);
      EXPECT_FALSE(seen[static_cast<std::size_t>(item)]) << n;
      seen[static_cast<std::size_t>(item)] = true;
    }
  }
}

TEST(Permutation, DependsOnSeedAndStream) {
  const auto first = [](Permutation::Key key) {
    const Permutation order(1000, key);
    return std::vector<std::int64_t>{order[0], order[1], order[2], order[3]};
  };
  EXPECT_EQ(first({1, 2}), first({1, 2}));
  EXPECT_NE(first({1, 2}), first({1, 3}));
  EXPECT_NE(first({1, 2}), first({2, 2}));
}

// The place of an item says nothing about it: 20 bins of places times 20 of items are equally full,
// as far as chance allows. Chi-squared with 361 degrees of freedom exceeds 490 once in 10^5.
TEST(Permutation, Mixes) {
  constexpr std::int64_t kN = 20000;
  const Permutation order(kN, {9, 4});
  std::vector<int> cells(400);
  for (std::int64_t i = 0; i < kN; ++i) {
    ++cells[static_cast<std::size_t>(i * 20 / kN * 20 + order[i] * 20 / kN)];
  }
  double chi_squared = 0;
  for (const int n : cells) chi_squared += (n - 50.0) * (n - 50.0) / 50.0;
  EXPECT_LT(chi_squared, 490);
}

}  // namespace
}  // namespace hadal::train
