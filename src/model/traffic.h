// What one decoded token reads from memory: the bound of decoding on any machine.
#pragma once

#include "core/numerics.h"
#include "model/config.h"
#include "model/weight_layout.h"

namespace hadal::model {

struct DecodeTraffic {
  double weight_bytes = 0;  // all but the experts not chosen, the embedding's other rows and MTP
  double kv_bytes = 0;      // window, indexer keys, and the compressed entries attended
  [[nodiscard]] double total() const { return weight_bytes + kv_bytes; }
};

// Of one token at position `context` - 1, as the weights are stored and the cache of these
// numerics holds them; with a batch, of a step of so many sequences, whose experts are taken to be
// chosen evenly and each read once.
[[nodiscard]] DecodeTraffic decode_traffic(const Config& config, const BoundWeights& weights,
                                           Numerics numerics, std::int64_t context,
                                           std::int64_t batch = 1);

}  // namespace hadal::model
