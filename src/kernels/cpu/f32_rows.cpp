#include "kernels/cpu/f32_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// v[0, n): the nearest E4M3 values times the block's power of two, as activations are rounded in
// the forward (architecture.md §5.1).
void round_block(float* v, std::int64_t n) {
  float amax = 0;
  for (std::int64_t i = 0; i < n; ++i) amax = std::max(amax, std::abs(v[i]));
  const int e = std::isfinite(amax) ? e4m3_scale_exponent(amax) : 0;
  const float scale = std::ldexp(1.0f, e), inverse = std::ldexp(1.0f, -e);
  for (std::int64_t i = 0; i < n; ++i) v[i] = to_float(to_e4m3(v[i] * inverse)) * scale;
}

HADAL_SIMD_CLONES void widen(float* to, const bf16* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

}  // namespace

const float* f32_rows(ThreadPool& pool, const TensorView& x, ActivationQuant quant,
                      std::vector<float>& buffer) {
  if (x.dtype() == DType::f32 && quant == ActivationQuant::none) return x.data<const float>();
  const std::int64_t n_rows = x.dim(0), cols = x.dim(1);
  buffer.resize(static_cast<std::size_t>(x.numel()));
  pool.parallel_for(n_rows, 16, [&](std::int64_t begin, std::int64_t end) {
    float* to = buffer.data() + begin * cols;
    const std::int64_t n = (end - begin) * cols;
    if (x.dtype() == DType::bf16)
      widen(to, x.data<const bf16>() + begin * cols, n);
    else
      std::copy_n(x.data<const float>() + begin * cols, n, to);
    if (quant == ActivationQuant::none) return;
    for (std::int64_t r = 0; r < end - begin; ++r) {
      for (std::int64_t c = 0; c < cols; c += kActQuantBlock) {
        round_block(to + r * cols + c, std::min(kActQuantBlock, cols - c));
      }
    }
  });
  return buffer.data();
}

const float* f32_rows(ThreadPool& pool, const QuantTensor& w, std::vector<float>& buffer) {
  if (w.data.dtype() == DType::f32 && !w.scale) return w.data.data<const float>();
  buffer.resize(static_cast<std::size_t>(w.data.numel()));
  pool.parallel_for(w.rows(), 16, [&](std::int64_t begin, std::int64_t end) {
    dequantize_rows(w, begin, end, buffer.data() + begin * w.cols());
  });
  return buffer.data();
}

}  // namespace hadal::kernels::cpu
