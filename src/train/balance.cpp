#include "train/balance.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "core/error.h"

namespace hadal::train {

void update_bias(std::span<float> bias, std::span<const std::int64_t> load, float speed) {
  if (bias.size() != load.size()) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("update_bias: {} biases for the loads of {} experts", bias.size(),
                            load.size()));
  }
  const std::int64_t total = std::accumulate(load.begin(), load.end(), std::int64_t{0});
  const auto n = static_cast<std::int64_t>(load.size());
  for (std::size_t i = 0; i < load.size(); ++i) {
    const std::int64_t missing = total - n * load[i];
    if (missing > 0) bias[i] += speed;
    if (missing < 0) bias[i] -= speed;
  }
}

LoadBalance load_balance(std::span<const std::int64_t> load) {
  const std::int64_t total = std::accumulate(load.begin(), load.end(), std::int64_t{0});
  if (total == 0) return {.n_dead = static_cast<std::int64_t>(load.size())};
  const std::int64_t peak = *std::max_element(load.begin(), load.end());
  return {.max_over_mean = static_cast<double>(peak) * static_cast<double>(load.size()) /
                           static_cast<double>(total),
          .n_dead = std::count(load.begin(), load.end(), 0)};
}

}  // namespace hadal::train
