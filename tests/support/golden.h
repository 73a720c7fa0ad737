// Reading golden tensors and comparing with them.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace hadal::test {

// Any float tensor as f32 values.
inline std::vector<float> values(const TensorView& t) {
  std::vector<float> out(static_cast<std::size_t>(t.numel()));
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    float& v = out[static_cast<std::size_t>(i)];
    switch (t.dtype()) {
      case DType::f32:
        v = t.data<const float>()[i];
        break;
      case DType::bf16:
        v = to_float(t.data<const bf16>()[i]);
        break;
      case DType::i32:
        v = static_cast<float>(t.data<const std::int32_t>()[i]);
        break;
      case DType::u8:
        v = static_cast<float>(t.data<const std::uint8_t>()[i]);
        break;
      default:
        ADD_FAILURE() << "values() of " << to_string(t.dtype());
    }
  }
  return out;
}

struct Difference {
  double max_abs = 0;
  double relative_l2 = 0;
};

inline Difference difference(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  Difference d;
  double square = 0, norm = 0;
  for (std::size_t i = 0; i < want.size() && i < got.size(); ++i) {
    const double e = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    // A NaN would pass every comparison below.
    if (!std::isfinite(e)) return {INFINITY, INFINITY};
    d.max_abs = std::max(d.max_abs, std::fabs(e));
    square += e * e;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  d.relative_l2 = norm > 0 ? std::sqrt(square / norm) : std::sqrt(square);
  return d;
}

// Rows of `width` values that are equal, zeros of either sign alike.
inline int equal_rows(const std::vector<float>& got, const std::vector<float>& want,
                      std::size_t width) {
  int rows = 0;
  for (std::size_t r = 0; r * width < want.size(); ++r) {
    bool same = true;
    for (std::size_t i = r * width; i < (r + 1) * width; ++i) same &= got[i] == want[i];
    rows += same ? 1 : 0;
  }
  return rows;
}

// Equal values, NaN equal to NaN, zeros of either sign alike.
inline void expect_equal(const std::vector<float>& got, const std::vector<float>& want,
                         const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  int shown = 0;
  for (std::size_t i = 0; i < want.size() && shown < 5; ++i) {
    if (got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
    ADD_FAILURE() << what << "[" << i << "]: " << got[i] << ", wanted " << want[i];
    ++shown;
  }
}

inline std::int64_t argmax(const float* row, std::int64_t n) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < n; ++i) best = row[i] > row[best] ? i : best;
  return best;
}

}  // namespace hadal::test
