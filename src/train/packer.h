// Puts pieces of documents into rows of one length, cutting as little as can be.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hadal::train {

// Inputs [begin, begin + n_tokens) of a document, which are a sequence of their own: positions
// count from 0 and nothing of the row is seen but this. The targets are the tokens one further, so
// the last token of a document is the input of no piece.
struct Piece {
  std::int64_t document;
  std::int64_t begin;
  std::int64_t n_tokens;
  bool operator==(const Piece&) const = default;
};

struct PackOptions {
  std::int64_t sequence_length;
  // Pieces begin at multiples of this inside a row; what lies between is padding. 1: no padding.
  // Divides sequence_length. DeepSeek-V4's m makes the blocks of the compressor fall together.
  std::int64_t alignment = 1;
};

// Rows of pieces. pieces of row r: pieces()[first_of(r), first_of(r + 1)).
class PackedRows {
 public:
  [[nodiscard]] std::int64_t n_rows() const { return std::ssize(first_) - 1; }
  [[nodiscard]] std::span<const Piece> row(std::int64_t r) const {
    const auto begin = static_cast<std::size_t>(first_[static_cast<std::size_t>(r)]);
    const auto end = static_cast<std::size_t>(first_[static_cast<std::size_t>(r) + 1]);
    return std::span(pieces_).subspan(begin, end - begin);
  }

 private:
  friend PackedRows pack_best_fit(std::vector<Piece> pieces, const PackOptions& options);
  std::vector<Piece> pieces_;
  std::vector<std::int64_t> first_{0};
};

// Appends [begin, end) of a document's inputs to `pieces`, cut to sequence_length from the left:
// what is longer goes on as another piece.
void cut_document(std::int64_t document, std::int64_t begin, std::int64_t end,
                  std::int64_t sequence_length, std::vector<Piece>& pieces);

// Best fit decreasing: the longest piece first, each into the row with the least room that still
// holds it (of equal rows, the one opened first). No piece is longer than sequence_length. The
// result depends on the pieces and their order alone. Takes time n log n.
// Source: Ding et al. 2024, "Fewer truncations improve language modeling", §3; DeepSeek-V4 §4.1.
[[nodiscard]] PackedRows pack_best_fit(std::vector<Piece> pieces, const PackOptions& options);

}  // namespace hadal::train
