#include "kernels/sum_squares.h"

#include "kernels/cpu/chunks.h"

namespace hadal::kernels::cpu {

namespace {

constexpr std::int64_t kChunk = 32768;  // elements

HADAL_SIMD_CLONES double squares(const float* x, std::int64_t n) {
  return lane_sum_f64(n, [x](std::int64_t i) {
    const double v = x[i];
    return v * v;
  });
}

}  // namespace

void sum_squares(Stream& stream, const SumSquaresArgs& a) {
  HADAL_CHECK(a.tensors.size() == a.sums.size());
  std::vector<std::int64_t> sizes;
  for (const TensorView& t : a.tensors) sizes.push_back(t.numel());
  const std::vector<std::int64_t> chunks(sizes.size(), kChunk);
  sum_over_chunks(stream.pool(), sizes, chunks, a.sums,
                  [&](std::size_t i, std::int64_t begin, std::int64_t end) {
                    return squares(a.tensors[i].data<const float>() + begin, end - begin);
                  });
}

}  // namespace hadal::kernels::cpu
