#include "train/spike_detector.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace hadal::train {

namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

void push(std::vector<double>& values, double value, std::int64_t limit) {
  values.push_back(value);
  if (std::ssize(values) > limit) values.erase(values.begin());
}

}  // namespace

std::string SpikeDetector::observe(double loss, double gradient_norm) {
  const double log_loss = std::log(loss);
  std::string verdict;
  if (std::ssize(state_.log_losses) >= options_.min_steps) {
    const double middle = median(state_.log_losses);
    std::vector<double> distances;
    for (const double x : state_.log_losses) distances.push_back(std::abs(x - middle));
    // 1.4826 makes the median distance of normal values their deviation. The floor keeps a flat
    // stretch from calling its own noise a spike.
    const double deviation = std::max(1.4826 * median(distances), 1e-3);
    const double z = (log_loss - middle) / deviation;
    const bool is_high = z > options_.loss_z;
    const double norm = median(state_.gradient_norms);
    if (is_high && state_.was_high) {
      verdict = fmt::format(
          "loss {:.4g} is {:.1f} robust deviations above the median {:.4g} of {} "
          "steps, twice in a row",
          loss, z, std::exp(middle), state_.log_losses.size());
    } else if (gradient_norm > options_.gradient_ratio * norm) {
      verdict = fmt::format("gradient norm {:.4g} is {:.1f} times the median of {} steps",
                            gradient_norm, gradient_norm / norm, state_.gradient_norms.size());
    }
    state_.was_high = is_high;
  }
  push(state_.log_losses, log_loss, options_.window);
  push(state_.gradient_norms, gradient_norm, options_.window);
  return verdict;
}

}  // namespace hadal::train
