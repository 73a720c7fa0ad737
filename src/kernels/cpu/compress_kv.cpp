#include "kernels/compress_kv.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/simd.h"

namespace hadal::kernels::cpu {

namespace {

// Rows of one window as pointers, so that pooling does not care where a row lives.
struct WindowRow {
  const float* kv;
  const float* gate;
};

// y[e] = sum_j softmax_j(gate[j][e]) * kv[j][e], rows ascending.
template <class T>
HADAL_SIMD_INLINE void pool_rows_as(T* y, const WindowRow* rows, int n_rows, std::int64_t width) {
  constexpr std::int64_t kBlock = 64;
  for (std::int64_t e0 = 0; e0 < width; e0 += kBlock) {
    const std::int64_t n = std::min(kBlock, width - e0);
    float peak[kBlock], sum[kBlock] = {}, value[kBlock] = {};
    for (std::int64_t e = 0; e < n; ++e) peak[e] = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < n_rows; ++j) {
      const float* gate = rows[j].gate + e0;
      for (std::int64_t e = 0; e < n; ++e) peak[e] = gate[e] > peak[e] ? gate[e] : peak[e];
    }
    for (int j = 0; j < n_rows; ++j) {
      const float* gate = rows[j].gate + e0;
      const float* kv = rows[j].kv + e0;
      for (std::int64_t e = 0; e < n; ++e) {
        const float p = exp_f32(gate[e] - peak[e]);
        sum[e] += p;
        value[e] += p * kv[e];
      }
    }
    for (std::int64_t e = 0; e < n; ++e) put(y[e0 + e], value[e] / sum[e]);
  }
}
HADAL_SIMD_CLONES void pool_rows(float* y, const WindowRow* rows, int n_rows, std::int64_t width) {
  pool_rows_as(y, rows, n_rows, width);
}
HADAL_SIMD_CLONES void pool_rows(bf16* y, const WindowRow* rows, int n_rows, std::int64_t width) {
  pool_rows_as(y, rows, n_rows, width);
}

// Where the projections of a position are: in this batch or in the tail.
class PositionRows {
 public:
  PositionRows(const CompressKvArgs& a, const CompressSequence& s)
      : kv_(a.kv.data<const float>()),
        gate_(a.gate.data<const float>()),
        width_(a.kv.dim(1)),
        seq_(s) {}
  [[nodiscard]] WindowRow at(std::int64_t position, std::int64_t column) const {
    if (position >= seq_.start) {
      const std::int64_t offset = (seq_.begin + position - seq_.start) * width_ + column;
      return {kv_ + offset, gate_ + offset};
    }
    const std::int64_t offset = position % seq_.tail.kv.dim(0) * width_ + column;
    return {seq_.tail.kv.data<const float>() + offset, seq_.tail.gate.data<const float>() + offset};
  }

 private:
  const float* kv_;
  const float* gate_;
  std::int64_t width_;
  const CompressSequence& seq_;
};

void compress_sequence(Stream& stream, const CompressKvArgs& a, const CompressSequence& s) {
  const std::int64_t ratio = a.ratio, row_width = a.kv.dim(1), width = a.entries.dim(1);
  auto* kv = a.kv.data<float>();
  auto* gate = a.gate.data<float>();
  const auto* bias = a.position_bias.data<const float>();
  const std::int64_t end_position = s.start + s.end - s.begin;

  for (std::int64_t t = s.begin; t < s.end; ++t) {
    const float* b = bias + (s.start + t - s.begin) % ratio * row_width;
    for (std::int64_t e = 0; e < row_width; ++e) gate[t * row_width + e] += b[e];
  }

  const std::int64_t first = s.start / ratio, last = end_position / ratio;  // entries [first, last)
  const PositionRows rows(a, s);
  dispatch_activation(a.entries.dtype(), [&]<class T>() {
    stream.pool().parallel_for(last - first, 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<WindowRow> window;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t entry = first + i, p0 = entry * ratio;
        window.clear();
        // The first window has no predecessor: its weight would be exactly 0.
        if (a.overlap && entry > 0) {
          for (std::int64_t p = p0 - ratio; p < p0; ++p) window.push_back(rows.at(p, 0));
        }
        for (std::int64_t p = p0; p < p0 + ratio; ++p) {
          window.push_back(rows.at(p, a.overlap ? width : 0));
        }
        pool_rows(a.entries.data<T>() + (s.first_entry + i) * width, window.data(),
                  static_cast<int>(window.size()), width);
      }
    });
  });

  if (!s.tail.kv) return;
  // After the entries: the ring may be as short as the rows that the next call needs.
  const std::int64_t ring = s.tail.kv.dim(0);
  for (std::int64_t p = std::max(s.start, end_position - ring); p < end_position; ++p) {
    const std::int64_t from = (s.begin + p - s.start) * row_width, to = p % ring * row_width;
    std::copy_n(kv + from, row_width, s.tail.kv.data<float>() + to);
    std::copy_n(gate + from, row_width, s.tail.gate.data<float>() + to);
  }
}

}  // namespace

void compress_kv(Stream& stream, const CompressKvArgs& a) {
  for (const CompressSequence& s : a.sequences) compress_sequence(stream, a, s);
}

}  // namespace hadal::kernels::cpu
