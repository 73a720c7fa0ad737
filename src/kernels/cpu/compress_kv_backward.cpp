#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/compress_kv.h"
#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// One pooled row and its gradients.
struct PooledRow {
  const float *kv, *gate;
  float *dkv, *dgate;
};

HADAL_SIMD_CLONES void pool_backward(const float* dy, const PooledRow* rows, int n_rows,
                                     std::int64_t width) {
  constexpr std::int64_t kBlock = 64;
  for (std::int64_t e0 = 0; e0 < width; e0 += kBlock) {
    const std::int64_t n = std::min(kBlock, width - e0);
    float peak[kBlock], sum[kBlock] = {}, value[kBlock] = {};
    for (std::int64_t e = 0; e < n; ++e) peak[e] = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < n_rows; ++j) {
      const float* gate = rows[j].gate + e0;
      for (std::int64_t e = 0; e < n; ++e) peak[e] = gate[e] > peak[e] ? gate[e] : peak[e];
    }
    // The weights, not yet divided by their sum, wait where their gradient will be.
    for (int j = 0; j < n_rows; ++j) {
      const float *gate = rows[j].gate + e0, *kv = rows[j].kv + e0;
      float* p = rows[j].dgate + e0;
      for (std::int64_t e = 0; e < n; ++e) {
        p[e] = exp_f32(gate[e] - peak[e]);
        sum[e] += p[e];
        value[e] += p[e] * kv[e];
      }
    }
    for (std::int64_t e = 0; e < n; ++e) {
      sum[e] = 1.0f / sum[e];
      value[e] *= sum[e];
    }
    for (int j = 0; j < n_rows; ++j) {
      const float* kv = rows[j].kv + e0;
      float *dkv = rows[j].dkv + e0, *dgate = rows[j].dgate + e0;
      for (std::int64_t e = 0; e < n; ++e) {
        const float g = dy[e0 + e] * (dgate[e] * sum[e]);
        dkv[e] = g;
        dgate[e] = g * (kv[e] - value[e]);
      }
    }
  }
}

void sequence_backward(ThreadPool& pool, const CompressKvBackwardArgs& a,
                       const CompressSequence& s) {
  const std::int64_t ratio = a.ratio, row_width = a.kv.dim(1), width = a.dentries.dim(1);
  const auto row = [&](std::int64_t position, std::int64_t column) {
    const std::int64_t at = (s.begin + position) * row_width + column;
    return PooledRow{a.kv.data<const float>() + at, a.gate.data<const float>() + at,
                     a.dkv.data<float>() + at, a.dgate.data<float>() + at};
  };
  // A token's own half belongs to one entry and its other half to the next one: no two meet.
  pool.parallel_for((s.end - s.begin) / ratio, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<PooledRow> window;
    for (std::int64_t entry = begin; entry < end; ++entry) {
      window.clear();
      const std::int64_t p0 = entry * ratio;
      if (a.overlap && entry > 0) {
        for (std::int64_t p = p0 - ratio; p < p0; ++p) window.push_back(row(p, 0));
      }
      for (std::int64_t p = p0; p < p0 + ratio; ++p) {
        window.push_back(row(p, a.overlap ? width : 0));
      }
      pool_backward(a.dentries.data<const float>() + (s.first_entry + entry) * width, window.data(),
                    static_cast<int>(window.size()), width);
    }
  });
}

}  // namespace

void compress_kv_backward(Stream& stream, const CompressKvBackwardArgs& a) {
  std::memset(a.dkv.bytes(), 0, a.dkv.nbytes());
  std::memset(a.dgate.bytes(), 0, a.dgate.nbytes());
  for (const CompressSequence& s : a.sequences) sequence_backward(stream.pool(), a, s);
  if (!a.dposition_bias) return;
  const std::int64_t row_width = a.kv.dim(1);
  // Every row of the bias adds its tokens in their order.
  stream.pool().parallel_for(a.ratio, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* sum = a.dposition_bias.data<float>() + r * row_width;
      for (const CompressSequence& s : a.sequences) {
        for (std::int64_t t = s.begin + r; t < s.end; t += a.ratio) {
          const float* dgate = a.dgate.data<const float>() + t * row_width;
          for (std::int64_t e = 0; e < row_width; ++e) sum[e] += dgate[e];
        }
      }
    }
  });
}

}  // namespace hadal::kernels::cpu
