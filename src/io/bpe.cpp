#include "io/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "core/error.h"

namespace hadal::io {
namespace {

constexpr std::uint64_t kFreePair = UINT64_MAX;  // no pair: ids are not negative
constexpr std::uint32_t kNone = UINT32_MAX;      // no position
// Where the heap overtakes the scan, measured on letters and on spaces alike.
constexpr std::size_t kMaxScanBytes = 64;

}  // namespace

std::uint64_t Bpe::key(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::size_t Bpe::home(std::uint64_t pair) const {
  // Fibonacci hashing; the fold first, because the product's high bits see little of the left id.
  return ((pair ^ (pair >> 32)) * 0x9E3779B97F4A7C15u + (pair >> 32) * 0xD6E8FEB86659FD93u) >>
         shift_;
}

Bpe::Bpe(const std::array<TokenId, 256>& byte_ids, std::span<const Merge> merges)
    : byte_ids_(byte_ids) {
  const std::size_t n_slots = std::bit_ceil(2 * merges.size() + 2);
  shift_ = 64 - static_cast<unsigned>(std::countr_zero(n_slots));
  slots_.assign(n_slots, Slot{kFreePair, kNoMerge, -1});
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::uint64_t pair = key(merges[rank].left, merges[rank].right);
    std::size_t slot = home(pair);
    while (slots_[slot].pair != kFreePair && slots_[slot].pair != pair) {
      slot = (slot + 1) & (n_slots - 1);
    }
    slots_[slot] = {pair, static_cast<std::uint32_t>(rank), merges[rank].merged};
  }
}

Bpe::Found Bpe::find(TokenId left, TokenId right) const {
  const std::uint64_t pair = key(left, right);
  std::size_t slot = home(pair);
  while (slots_[slot].pair != pair) {
    if (slots_[slot].pair == kFreePair) return {kNoMerge, -1};
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return {slots_[slot].rank, slots_[slot].merged};
}

bool Bpe::covers(std::string_view piece) const {
  return std::all_of(piece.begin(), piece.end(),
                     [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; });
}

void Bpe::load_bytes(std::string_view piece, std::vector<TokenId>& ids) const {
  ids.resize(piece.size());
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const auto byte = static_cast<unsigned char>(piece[i]);
    ids[i] = byte_ids_[byte];
    if (ids[i] < 0) {
      throw Error(ErrorCode::unsupported,
                  fmt::format("the vocabulary has no token for byte 0x{:02X}, so this text cannot "
                              "be encoded without loss",
                              byte));
    }
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<TokenId>& out) const {
  if (piece.size() <= kMaxScanBytes) {
    encode_by_scan(piece, scratch, out);
  } else {
    encode_by_heap(piece, scratch, out);
  }
}

void Bpe::encode_by_scan(std::string_view piece, Scratch& scratch,
                         std::vector<TokenId>& out) const {
  if (piece.empty()) return;
  load_bytes(piece, scratch.ids);
  TokenId* ids = scratch.ids.data();
  std::size_t n = piece.size();
  scratch.ranks.resize(n);
  std::uint32_t* ranks = scratch.ranks.data();
  for (std::size_t i = 0; i + 1 < n; ++i) ranks[i] = rank(ids[i], ids[i + 1]);

  while (n > 1) {
    const auto at = static_cast<std::size_t>(std::min_element(ranks, ranks + n - 1) - ranks);
    if (ranks[at] == kNoMerge) break;
    ids[at] = find(ids[at], ids[at + 1]).merged;
    std::copy(ids + at + 2, ids + n, ids + at + 1);
    if (at + 2 < n) std::copy(ranks + at + 2, ranks + n - 1, ranks + at + 1);
    --n;
    if (at > 0) ranks[at - 1] = rank(ids[at - 1], ids[at]);
    if (at + 1 < n) ranks[at] = rank(ids[at], ids[at + 1]);
  }
  out.insert(out.end(), ids, ids + n);
}

void Bpe::encode_by_heap(std::string_view piece, Scratch& scratch,
                         std::vector<TokenId>& out) const {
  if (piece.empty()) return;
  if (piece.size() >= kNone) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("one unbroken piece of text has {} bytes; the tokenizer takes less "
                            "than 4 GiB",
                            piece.size()));
  }
  load_bytes(piece, scratch.ids);
  auto& ids = scratch.ids;
  const auto n = static_cast<std::uint32_t>(piece.size());
  auto& ranks = scratch.ranks;
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& heap = scratch.heap;
  ranks.assign(n, kNoMerge);
  next.resize(n);
  previous.resize(n);
  heap.clear();

  // An entry is rank and position in one number, so that the least is the lowest rank, leftmost.
  // It holds while the pair at that position still has that rank: a rank belongs to one pair.
  const auto consider = [&](std::uint32_t at) {
    ranks[at] = next[at] == kNone ? kNoMerge : rank(ids[at], ids[next[at]]);
    if (ranks[at] == kNoMerge) return false;
    heap.push_back(static_cast<std::uint64_t>(ranks[at]) << 32 | at);
    return true;
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1 < n ? i + 1 : kNone;
    previous[i] = i > 0 ? i - 1 : kNone;
  }
  for (std::uint32_t i = 0; i < n; ++i) consider(i);
  const auto least_first = std::greater<>();
  std::make_heap(heap.begin(), heap.end(), least_first);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), least_first);
    const std::uint64_t top = heap.back();
    heap.pop_back();
    const auto at = static_cast<std::uint32_t>(top);
    if (ranks[at] != static_cast<std::uint32_t>(top >> 32)) continue;  // merged away since

    const std::uint32_t gone = next[at];
    ids[at] = find(ids[at], ids[gone]).merged;
    ranks[gone] = kNoMerge;
    next[at] = next[gone];
    if (next[at] != kNone) previous[next[at]] = at;
    if (consider(at)) std::push_heap(heap.begin(), heap.end(), least_first);
    if (previous[at] != kNone && consider(previous[at])) {
      std::push_heap(heap.begin(), heap.end(), least_first);
    }
  }
  for (std::uint32_t at = 0; at != kNone; at = next[at]) out.push_back(ids[at]);
}

}  // namespace hadal::io
