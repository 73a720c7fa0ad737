#pragma once

#include "parallel/communicator.h"

namespace hadal::parallel {

// All processes that mpirun started. Built from messages between two ranks, in pieces whose size
// fits MPI's int counts, so that amounts have no limit and no library's choice of an algorithm
// decides the order of anything.
class MpiComm final : public Communicator {
 public:
  // Starts MPI; once in a process. Only the calling thread may use it.
  // Throws Error device when MPI does not start.
  MpiComm();
  // Ends MPI. While an exception is on its way, ends all ranks.
  ~MpiComm() override;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  void all_gather(std::span<const std::byte> own, std::span<const std::int64_t> n_bytes,
                  std::span<std::byte> all) override;
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> n_sent,
                  std::span<std::byte> receive, std::span<const std::int64_t> n_received) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void barrier() override;
  [[noreturn]] void abort(const std::string& why) override;

 private:
  void check(int status, const char* function) const;

  int rank_ = 0, size_ = 1;
  int exceptions_ = 0;  // on their way when it was made
};

[[nodiscard]] std::string mpi_library_version();

}  // namespace hadal::parallel
