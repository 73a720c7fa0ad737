#include "parallel/communicator.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace hadal::parallel {

namespace {

// Elements that are summed at a time: what a sum needs beside its values is as large.
constexpr std::int64_t kSumElements = std::int64_t{1} << 22;

}  // namespace

// Each rank sums one piece of the values, in rank order, and hands it to the others.
template <class T>
void Communicator::sum(std::span<T> values) {
  const std::int64_t n_ranks = size();
  if (n_ranks == 1) return;
  const auto n = static_cast<std::int64_t>(values.size());
  std::vector<T> received;
  for (std::int64_t begin = 0; begin < n; begin += kSumElements) {
    const std::int64_t count = std::min(kSumElements, n - begin);
    const std::span<T> chunk =
        values.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
    std::vector<std::int64_t> piece_bytes;
    for (std::int64_t r = 0; r < n_ranks; ++r) {
      const std::int64_t piece = count * (r + 1) / n_ranks - count * r / n_ranks;
      piece_bytes.push_back(piece * static_cast<std::int64_t>(sizeof(T)));
    }
    const std::int64_t own_bytes = piece_bytes[static_cast<std::size_t>(rank())];
    const std::size_t own = static_cast<std::size_t>(own_bytes) / sizeof(T);
    received.resize(own * static_cast<std::size_t>(n_ranks));
    const std::vector<std::int64_t> from_each(static_cast<std::size_t>(n_ranks), own_bytes);
    all_to_all(std::as_bytes(chunk), piece_bytes, std::as_writable_bytes(std::span(received)),
               from_each);
    for (std::size_t r = 1; r < static_cast<std::size_t>(n_ranks); ++r) {
      for (std::size_t i = 0; i < own; ++i) received[i] += received[r * own + i];
    }
    all_gather(std::as_bytes(std::span(received).first(own)), piece_bytes,
               std::as_writable_bytes(chunk));
  }
}

void Communicator::all_reduce_sum(std::span<float> values) {
  sum(values);
}
void Communicator::all_reduce_sum(std::span<double> values) {
  sum(values);
}
void Communicator::all_reduce_sum(std::span<std::int64_t> values) {
  sum(values);
}

void Communicator::all_gather_even(std::span<const std::byte> own, std::span<std::byte> all) {
  HADAL_CHECK(all.size() == own.size() * static_cast<std::size_t>(size()));
  const std::vector<std::int64_t> n_bytes(static_cast<std::size_t>(size()),
                                          static_cast<std::int64_t>(own.size()));
  all_gather(own, n_bytes, all);
}

void Communicator::all_to_all_even(std::span<const std::byte> send, std::span<std::byte> receive) {
  HADAL_CHECK(send.size() == receive.size() && send.size() % static_cast<std::size_t>(size()) == 0);
  const std::vector<std::int64_t> n_bytes(static_cast<std::size_t>(size()),
                                          static_cast<std::int64_t>(send.size()) / size());
  all_to_all(send, n_bytes, receive, n_bytes);
}

}  // namespace hadal::parallel
