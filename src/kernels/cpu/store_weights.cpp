#include "kernels/store_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/quant.h"

namespace hadal::kernels::cpu {

namespace {

void round_all(const TensorView& master, const TensorView& to) {
  const auto* from = master.data<const float>();
  for (std::int64_t i = 0; i < master.numel(); ++i) {
    if (to.dtype() == DType::bf16)
      to.data<bf16>()[i] = to_bf16(from[i]);
    else
      to.data<float>()[i] = round_to_bf16(from[i]);
  }
}

void put(const QuantTensor& fresh, const StoredWeight& to) {
  HADAL_CHECK(fresh.data.nbytes() == to.data.nbytes() && fresh.scale.nbytes() == to.scale.nbytes());
  if (fresh.data.nbytes() == 0) return;
  std::memcpy(to.data.bytes(), fresh.data.bytes(), fresh.data.nbytes());
  std::memcpy(to.scale.bytes(), fresh.scale.bytes(), fresh.scale.nbytes());
}

std::int64_t first_non_finite(const TensorView& master) {
  const auto* x = master.data<const float>();
  const auto* end = x + master.numel();
  return std::find_if(x, end, [](float v) { return !std::isfinite(v); }) - x;
}

StoreResult store(const StoredWeight& w) {
  StoreResult result;
  const DType dtype = w.data.dtype();
  if (dtype == DType::bf16 || dtype == DType::f32) {
    round_all(w.master, w.data);
    return result;
  }
  try {
    if (dtype == DType::f8_e4m3) {
      put(quantize_fp8(w.master), w);
    } else {
      HADAL_CHECK(dtype == DType::f4_e2m1);
      const Fp4InFp8 fresh = quantize_fp4_in_fp8(w.master);
      put(fresh.weight, w);
      result.n_lifted = fresh.n_lifted;
    }
  } catch (const Error& e) {
    if (e.code != ErrorCode::corrupt_data) throw;
    result.non_finite = first_non_finite(w.master);
  }
  return result;
}

}  // namespace

void store_weights(Stream& stream, const StoreWeightsArgs& a) {
  HADAL_CHECK(a.results.size() == a.weights.size());
  stream.pool().parallel_for(
      static_cast<std::int64_t>(a.weights.size()), 1, [&](std::int64_t begin, std::int64_t end) {
        for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
          HADAL_CHECK(a.weights[i].master.numel() == a.weights[i].data.numel());
          a.results[i] = store(a.weights[i]);
        }
      });
}

}  // namespace hadal::kernels::cpu
