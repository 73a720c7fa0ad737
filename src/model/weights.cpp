#include "model/weights.h"

namespace hadal::model {

Tensor as_f32(const Tensor& t) {
  if (t.dtype() == DType::f32) return t;
  const auto* from = t.data<const bf16>();
  Tensor out = Tensor::empty(t.shape(), DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) out.data<float>()[i] = to_float(from[i]);
  return out;
}

HcWeights hc_weights(const BoundWeights& weights, const std::string& prefix) {
  return {.fn = {weights.plain(prefix + "_fn"), {}, {}},
          .scale = weights.plain(prefix + "_scale"),
          .base = weights.plain(prefix + "_base")};
}

}  // namespace hadal::model
