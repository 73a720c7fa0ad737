#include "train/packer.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <set>

#include "core/error.h"

namespace hadal::train {

namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

void cut_document(std::int64_t document, std::int64_t begin, std::int64_t end,
                  std::int64_t sequence_length, std::vector<Piece>& pieces) {
  for (; begin < end; begin += sequence_length) {
    pieces.push_back({document, begin, std::min(sequence_length, end - begin)});
  }
}

PackedRows pack_best_fit(std::vector<Piece> pieces, const PackOptions& options) {
  HADAL_CHECK(options.sequence_length > 0 && options.alignment > 0);
  HADAL_CHECK(options.sequence_length % options.alignment == 0);
  std::ranges::stable_sort(pieces, std::greater<>(), &Piece::n_tokens);

  // By room that is left: the rows opened first come first. Room is a multiple of the alignment, so
  // what a piece needs of it is its length, rounded up.
  using Rows = std::priority_queue<std::int64_t, std::vector<std::int64_t>, std::greater<>>;
  std::vector<Rows> rows_by_room(
      static_cast<std::size_t>(options.sequence_length / options.alignment));
  std::set<std::int64_t> rooms;  // for which there are rows, in units of the alignment
  std::vector<std::int64_t> row_of(pieces.size());
  std::int64_t n_rows = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    HADAL_CHECK(pieces[i].n_tokens > 0 && pieces[i].n_tokens <= options.sequence_length);
    const std::int64_t needed = round_up(pieces[i].n_tokens, options.alignment) / options.alignment;
    std::int64_t room = options.sequence_length / options.alignment;
    const auto fitting = rooms.lower_bound(needed);
    if (fitting == rooms.end()) {
      row_of[i] = n_rows++;
    } else {
      room = *fitting;
      Rows& rows = rows_by_room[static_cast<std::size_t>(room)];
      row_of[i] = rows.top();
      rows.pop();
      if (rows.empty()) rooms.erase(fitting);
    }
    room -= needed;
    if (room == 0) continue;
    Rows& rows = rows_by_room[static_cast<std::size_t>(room)];
    if (rows.empty()) rooms.insert(room);
    rows.push(row_of[i]);
  }

  PackedRows packed;
  packed.first_.assign(static_cast<std::size_t>(n_rows) + 1, 0);
  for (const std::int64_t row : row_of) ++packed.first_[static_cast<std::size_t>(row) + 1];
  for (std::size_t r = 1; r < packed.first_.size(); ++r) packed.first_[r] += packed.first_[r - 1];
  std::vector<std::int64_t> next(packed.first_.begin(), packed.first_.end() - 1);
  packed.pieces_.resize(pieces.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    auto& at = next[static_cast<std::size_t>(row_of[i])];
    packed.pieces_[static_cast<std::size_t>(at++)] = pieces[i];
  }
  return packed;
}

}  // namespace hadal::train
