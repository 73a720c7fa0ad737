// Small helpers between checkpoint tensors and the forms that layers hold.
#pragma once

#include <string>

#include "kernels/hyper_connection.h"
#include "model/weight_layout.h"

namespace hadal::model {

// A norm or another small vector in f32, whatever it is stored as. Exact.
[[nodiscard]] Tensor as_f32(const Tensor& t);

// `prefix` + "_fn", "_scale", "_base".
[[nodiscard]] HcWeights hc_weights(const BoundWeights& weights, const std::string& prefix);

}  // namespace hadal::model
