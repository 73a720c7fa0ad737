#include "model/traffic.h"

#include <algorithm>
#include <cmath>

#include "model/kv_format.h"

namespace hadal::model {

namespace {

double weight_bytes(const Config& config, const BoundWeights& weights, std::int64_t batch) {
  const double share = static_cast<double>(config.num_experts_per_tok) /
                       static_cast<double>(config.n_routed_experts);
  const double chosen = 1 - std::pow(1 - share, static_cast<double>(batch));
  double total = 0;
  for (const ExpectedWeight& w : expected_weights(config)) {
    if (w.name.starts_with("mtp.")) continue;
    const bool scaled = w.role == WeightRole::linear || w.role == WeightRole::expert;
    const auto bytes = static_cast<double>(scaled ? weights.linear(w.name).nbytes()
                                                  : weights.plain(w.name).nbytes());
    if (w.role == WeightRole::token_table || w.name == "embed.weight") {
      total += bytes * static_cast<double>(batch) / static_cast<double>(config.vocab_size);  // rows
    } else {
      total += w.role == WeightRole::expert ? bytes * chosen : bytes;
    }
  }
  return total;
}

double kv_bytes(const Config& config, Numerics numerics, std::int64_t context) {
  const KvFormat format = KvFormat::of(config, numerics);
  std::int64_t entries = 0, index_keys = 0;  // rows
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const LayerSpec& layer = config.layer(l);
    entries += std::min(config.sliding_window, context);
    if (!layer.has_compressor()) continue;
    const std::int64_t compressed = context / layer.compress_ratio;
    if (layer.has_indexer()) {
      entries += std::min(config.index_topk, compressed);
      index_keys += compressed;
    } else {
      entries += compressed;
    }
  }
  return static_cast<double>(entries * format.entry.row_bytes() +
                             index_keys * format.index.row_bytes());
}

}  // namespace

DecodeTraffic decode_traffic(const Config& config, const BoundWeights& weights, Numerics numerics,
                             std::int64_t context, std::int64_t batch) {
  return {.weight_bytes = weight_bytes(config, weights, batch),
          .kv_bytes = static_cast<double>(batch) * kv_bytes(config, numerics, context)};
}

}  // namespace hadal::model
