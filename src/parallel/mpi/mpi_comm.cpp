#include "parallel/mpi/mpi_comm.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace hadal::parallel {

namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{1} << 30;
constexpr int kTag = 1;

std::string error_text(int status) {
  char text[MPI_MAX_ERROR_STRING];
  int n = 0;
  if (MPI_Error_string(status, text, &n) != MPI_SUCCESS) return fmt::format("error {}", status);
  return {text, static_cast<std::size_t>(n)};
}

// Calls fn(offset, n) for the pieces of so many bytes.
template <class Fn>
void in_pieces(std::int64_t n_bytes, const Fn& fn) {
  for (std::int64_t at = 0; at < n_bytes; at += kPieceBytes) {
    fn(at, static_cast<int>(std::min(kPieceBytes, n_bytes - at)));
  }
}

std::vector<std::int64_t> offsets_of(std::span<const std::int64_t> n_bytes) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t n : n_bytes) offsets.push_back(offsets.back() + n);
  return offsets;
}

}  // namespace

MpiComm::MpiComm() : exceptions_(std::uncaught_exceptions()) {
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw Error(ErrorCode::device,
                "this MPI allows no threads beside it; hadal needs MPI_THREAD_FUNNELED");
  }
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
}

MpiComm::~MpiComm() {
  if (std::uncaught_exceptions() > exceptions_) MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
  MPI_Finalize();
}

void MpiComm::check(int status, const char* function) const {
  if (status == MPI_SUCCESS) return;
  throw Error(ErrorCode::device,
              fmt::format("rank {} of {}: {}: {}", rank_, size_, function, error_text(status)));
}

void MpiComm::all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> n_sent,
                         std::span<std::byte> receive, std::span<const std::int64_t> n_received) {
  const std::vector<std::int64_t> from = offsets_of(n_sent), to = offsets_of(n_received);
  HADAL_CHECK(std::ssize(n_sent) == size_ && std::ssize(n_received) == size_);
  HADAL_CHECK(from.back() == std::ssize(send) && to.back() == std::ssize(receive));
  const auto own = static_cast<std::size_t>(rank_);
  HADAL_CHECK(n_sent[own] == n_received[own]);
  std::vector<MPI_Request> requests;
  const auto next = [&]() -> MPI_Request* { return &requests.emplace_back(MPI_REQUEST_NULL); };
  for (int shift = 1; shift < size_; ++shift) {
    const int peer = (rank_ - shift + size_) % size_;
    const auto p = static_cast<std::size_t>(peer);
    in_pieces(n_received[p], [&](std::int64_t at, int n) {
      check(MPI_Irecv(receive.data() + to[p] + at, n, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, next()),
            "MPI_Irecv");
    });
  }
  for (int shift = 1; shift < size_; ++shift) {
    const int peer = (rank_ + shift) % size_;
    const auto p = static_cast<std::size_t>(peer);
    in_pieces(n_sent[p], [&](std::int64_t at, int n) {
      check(MPI_Isend(send.data() + from[p] + at, n, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, next()),
            "MPI_Isend");
    });
  }
  if (n_sent[own] > 0) {
    std::memcpy(receive.data() + to[own], send.data() + from[own],
                static_cast<std::size_t>(n_sent[own]));
  }
  check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
        "MPI_Waitall");
}

void MpiComm::all_gather(std::span<const std::byte> own, std::span<const std::int64_t> n_bytes,
                         std::span<std::byte> all) {
  const std::vector<std::int64_t> to = offsets_of(n_bytes);
  HADAL_CHECK(std::ssize(n_bytes) == size_ && to.back() == std::ssize(all));
  HADAL_CHECK(n_bytes[static_cast<std::size_t>(rank_)] == std::ssize(own));
  std::vector<MPI_Request> requests;
  const auto next = [&]() -> MPI_Request* { return &requests.emplace_back(MPI_REQUEST_NULL); };
  for (int shift = 1; shift < size_; ++shift) {
    const int peer = (rank_ - shift + size_) % size_;
    const auto p = static_cast<std::size_t>(peer);
    in_pieces(n_bytes[p], [&](std::int64_t at, int n) {
      check(MPI_Irecv(all.data() + to[p] + at, n, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, next()),
            "MPI_Irecv");
    });
  }
  for (int shift = 1; shift < size_; ++shift) {
    const int peer = (rank_ + shift) % size_;
    in_pieces(std::ssize(own), [&](std::int64_t at, int n) {
      check(MPI_Isend(own.data() + at, n, MPI_BYTE, peer, kTag, MPI_COMM_WORLD, next()),
            "MPI_Isend");
    });
  }
  if (!own.empty()) {
    std::memmove(all.data() + to[static_cast<std::size_t>(rank_)], own.data(), own.size());
  }
  check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
        "MPI_Waitall");
}

void MpiComm::broadcast(std::span<std::byte> bytes, int root) {
  in_pieces(std::ssize(bytes), [&](std::int64_t at, int n) {
    check(MPI_Bcast(bytes.data() + at, n, MPI_BYTE, root, MPI_COMM_WORLD), "MPI_Bcast");
  });
}

void MpiComm::barrier() {
  check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier");
}

void MpiComm::abort(const std::string& why) {
  fmt::print(stderr, "hadal: rank {} of {}: {}\n", rank_, size_, why);
  std::fflush(stderr);
  MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
  std::abort();  // MPI_Abort does not return
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int n = 0;
  if (MPI_Get_library_version(text, &n) != MPI_SUCCESS) return "MPI of an unknown version";
  const std::string all(text, static_cast<std::size_t>(n));
  return all.substr(0, all.find_first_of(",\n"));
}

}  // namespace hadal::parallel
