#include "train/selection_biases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/balance.h"

namespace hadal::train {

SelectionBiases::SelectionBiases(const ParameterStore& store) : store_(&store) {
  const model::Config& config = store.config();
  for (std::int64_t layer = 0; layer < std::ssize(config.layers); ++layer) {
    Bias bias;
    const std::int64_t mtp = layer - config.num_hidden_layers;
    if (!config.layer(layer).hash_routed) {
      bias.parameter = &store.at(mtp < 0 ? fmt::format("layers.{}.ffn.gate.bias", layer)
                                         : fmt::format("mtp.{}.ffn.gate.bias", mtp));
    }
    biases_.push_back(std::move(bias));
  }
  fetch();
}

void SelectionBiases::fetch() {
  for (Bias& bias : biases_) {
    if (bias.parameter != nullptr) bias.host = store_->named(*bias.parameter).on_host();
  }
}

void SelectionBiases::update(std::span<const StepWatch::Layer> layers, double speed) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::vector<std::int64_t>& load = layers[i].load;
    const Bias& bias = biases_[i];
    const bool ran = std::any_of(load.begin(), load.end(), [](std::int64_t n) { return n > 0; });
    if (bias.parameter == nullptr || !ran) continue;  // an MTP block may not have run
    update_bias(std::span(bias.host.data<float>(), static_cast<std::size_t>(bias.host.numel())),
                load, static_cast<float>(speed));
    if (store_->gpu() != nullptr) store_->named(*bias.parameter).assign(bias.host);
  }
}

double SelectionBiases::spread(std::size_t layer) const {
  const Tensor& bias = biases_[layer].host;
  if (!bias) return std::nan("");
  const auto* begin = bias.data<const float>();
  const auto [low, high] = std::minmax_element(begin, begin + bias.numel());
  return double{*high} - double{*low};
}

}  // namespace hadal::train
