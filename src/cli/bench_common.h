// What the benchmarks of one process share.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/token.h"
#include "ops/exec_context.h"

namespace hadal::cli {

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

[[nodiscard]] double median(std::vector<double> values);  // of at least one

// The same tokens on every machine.
[[nodiscard]] std::vector<TokenId> some_tokens(std::int64_t n, std::int64_t vocab_size);

// The kernels of a profile, those that took longest first.
[[nodiscard]] std::vector<std::pair<std::string, KernelProfile::Entry>> by_time(
    const KernelProfile& profile);

}  // namespace hadal::cli
