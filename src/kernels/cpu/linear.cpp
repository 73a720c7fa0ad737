#include "kernels/linear.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/dot.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// Weight rows of one range: enough multiplications to be worth handing to a thread.
std::int64_t row_grain(const ThreadPool& pool, std::int64_t n_tokens, std::int64_t rows,
                       std::int64_t cols) {
  constexpr std::int64_t kMinMultiplications = 1 << 18;
  const std::int64_t worthwhile =
      std::max<std::int64_t>(1, kMinMultiplications / (n_tokens * cols));
  const std::int64_t grain = pool.grain_for(rows, (worthwhile + 15) / 16 * 16);
  return n_tokens > 1 ? std::min<std::int64_t>((grain + 15) / 16 * 16, 128) : (grain + 7) / 8 * 8;
}

// Columns [begin, begin + cols) of x as a matrix of their own.
TensorView column_slice(const TensorView& x, std::int64_t begin, std::int64_t cols,
                        std::vector<std::byte>& buffer) {
  const std::size_t item = static_cast<std::size_t>(bits(x.dtype())) / 8;
  const auto row_bytes = static_cast<std::size_t>(cols) * item;
  const auto n = static_cast<std::size_t>(x.dim(0));
  buffer.resize(n * row_bytes);
  for (std::size_t t = 0; t < n; ++t) {
    const std::byte* from =
        x.bytes() +
        (t * static_cast<std::size_t>(x.dim(1)) + static_cast<std::size_t>(begin)) * item;
    std::copy_n(from, row_bytes, buffer.data() + t * row_bytes);
  }
  return {buffer.data(), {x.dim(0), cols}, x.dtype()};
}

}  // namespace

void linear(Stream& stream, const LinearArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0);
  if (n_tokens == 0) return;
  const WeightRows w = rows_of(*a.weight);
  const std::int64_t group_rows = w.rows / a.n_groups;
  thread_local std::vector<ActivationPanel> panels;
  thread_local std::vector<std::byte> slice;
  if (static_cast<std::int64_t>(panels.size()) < a.n_groups) {
    panels.resize(static_cast<std::size_t>(a.n_groups));
  }
  for (std::int64_t g = 0; g < a.n_groups; ++g) {
    const TensorView x = a.n_groups == 1 ? a.x : column_slice(a.x, g * w.cols, w.cols, slice);
    panels[static_cast<std::size_t>(g)].prepare(stream.pool(), x, w, a.activation_quant);
  }
  const ActivationPanel* prepared = panels.data();
  const std::int64_t grain = row_grain(stream.pool(), n_tokens, group_rows, w.cols);
  const std::int64_t ranges = (group_rows + grain - 1) / grain;
  dispatch_activation(a.y.dtype(), [&]<class T>() {
    stream.pool().parallel_for(a.n_groups * ranges, 1, [&](std::int64_t i0, std::int64_t i1) {
      for (std::int64_t i = i0; i < i1; ++i) {
        const std::int64_t g = i / ranges, r0 = i % ranges * grain;
        const std::int64_t n0 = g * group_rows + r0;
        const std::int64_t n1 = g * group_rows + std::min(group_rows, r0 + grain);
        T* y = a.y.data<T>();
        if constexpr (std::is_same_v<T, float>) {
          dot_rows(prepared[g], w, n0, n1, y + n0, w.rows);
        } else {
          thread_local std::vector<float> buffer;
          const std::int64_t n = n1 - n0;
          buffer.resize(static_cast<std::size_t>(n_tokens * n));
          dot_rows(prepared[g], w, n0, n1, buffer.data(), n);
          for (std::int64_t t = 0; t < n_tokens; ++t) {
            const float* from = buffer.data() + t * n;
            for (std::int64_t k = 0; k < n; ++k) put(y[t * w.rows + n0 + k], from[k]);
          }
        }
      }
    });
  });
}

}  // namespace hadal::kernels::cpu
