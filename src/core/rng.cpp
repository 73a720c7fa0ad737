#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace hadal {

std::uint32_t Rng::next_u32() {
  if (used_ == 4) {
    block_ = philox4x32({static_cast<std::uint32_t>(counter_),
                         static_cast<std::uint32_t>(counter_ >> 32), stream_, 0},
                        seed_);
    ++counter_;
    used_ = 0;
  }
  return block_[used_++];
}

float Rng::next_normal() {
  // Box-Muller, one of the pair: weights are drawn once, so the second half is not worth a state.
  const float radius = std::sqrt(-2.0f * std::log(next_uniform()));
  return radius * std::cos(2.0f * std::numbers::pi_v<float> * next_uniform());
}

std::uint32_t Rng::next_below(std::uint32_t n) {
  return static_cast<std::uint32_t>((std::uint64_t{next_u32()} * n) >> 32);
}

}  // namespace hadal
