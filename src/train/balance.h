// Even use of experts without a loss that pulls at the router's scores: a bias on the choice alone
// follows the load.  Source: DeepSeek-V4 §2.1; DeepSeek-V3 §2.1.2; training.md §2.6.
#pragma once

#include <cstdint>
#include <span>

namespace hadal::train {

// bias[i] += speed * sign(mean(load) - load[i]), exact: the mean is never rounded.
//   bias  [n_experts]  added to the scores when experts are chosen
//   load  [n_experts]  how many tokens of the global batch chose each expert
// Throws invalid_argument when the lengths differ.
void update_bias(std::span<float> bias, std::span<const std::int64_t> load, float speed);

struct LoadBalance {
  double max_over_mean = 0;  // 1: perfectly even; 0: nobody was chosen
  std::int64_t n_dead = 0;   // experts that no token chose
};
[[nodiscard]] LoadBalance load_balance(std::span<const std::int64_t> load);

}  // namespace hadal::train
