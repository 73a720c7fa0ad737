#include "cli/bench_common.h"

#include <algorithm>

#include "core/rng.h"

namespace hadal::cli {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<TokenId> some_tokens(std::int64_t n, std::int64_t vocab_size) {
  Rng rng(1);
  std::vector<TokenId> ids(static_cast<std::size_t>(n));
  for (TokenId& id : ids) {
    id = static_cast<TokenId>(rng.next_below(static_cast<std::uint32_t>(vocab_size)));
  }
  return ids;
}

std::vector<std::pair<std::string, KernelProfile::Entry>> by_time(const KernelProfile& profile) {
  std::vector<std::pair<std::string, KernelProfile::Entry>> kernels(profile.kernels.begin(),
                                                                    profile.kernels.end());
  std::sort(kernels.begin(), kernels.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  return kernels;
}

}  // namespace hadal::cli
