#pragma once

#include "parallel/communicator.h"

namespace hadal::parallel {

// A world of one.
class SelfComm final : public Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 1; }
  void all_gather(std::span<const std::byte> own, std::span<const std::int64_t> n_bytes,
                  std::span<std::byte> all) override;
  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> n_sent,
                  std::span<std::byte> receive, std::span<const std::int64_t> n_received) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void barrier() override {}
  [[noreturn]] void abort(const std::string& why) override;
};

// For whoever is given no other. Has no state.
[[nodiscard]] Communicator& self();

}  // namespace hadal::parallel
