// The slow obvious forms, in double, one loop nest an equation. They judge the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace hadal::reference {

using Matrix = std::vector<std::vector<double>>;  // rows

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Attention of one head over a list of shared key-value rows with a sink in the denominator.
inline std::vector<double> attend(const std::vector<double>& q, const Matrix& rows, double sink,
                                  double scale) {
  std::vector<double> z;
  double peak = -INFINITY;
  for (const auto& row : rows) peak = std::max(peak, z.emplace_back(scale * dot(q, row)));
  double denominator = std::exp(sink - peak);
  std::vector<double> out(q.size());
  for (std::size_t j = 0; j < rows.size(); ++j) {
    const double p = std::exp(z[j] - peak);
    denominator += p;
    for (std::size_t c = 0; c < q.size(); ++c) out[c] += p * rows[j][c];
  }
  for (double& v : out) v /= denominator;
  return out;
}

// One compressed entry: softmax over rows per channel.
inline std::vector<double> pool(const Matrix& kv, const Matrix& gate) {
  std::vector<double> out(kv[0].size());
  for (std::size_t c = 0; c < out.size(); ++c) {
    double peak = -INFINITY, sum = 0;
    for (const auto& row : gate) peak = std::max(peak, row[c]);
    for (std::size_t j = 0; j < kv.size(); ++j) {
      const double p = std::exp(gate[j][c] - peak);
      sum += p;
      out[c] += p * kv[j][c];
    }
    out[c] /= sum;
  }
  return out;
}

inline double silu(double x) {
  return x / (1 + std::exp(-x));
}

// down(weight * silu(min(gate, limit)) * clamp(up, -limit, limit)); limit 0 does not clamp.
inline std::vector<double> expert(const std::vector<double>& x, const Matrix& gate_proj,
                                  const Matrix& up_proj, const Matrix& down_proj, double weight,
                                  double limit) {
  std::vector<double> h;
  for (std::size_t i = 0; i < gate_proj.size(); ++i) {
    double gate = dot(gate_proj[i], x), up = dot(up_proj[i], x);
    if (limit > 0) gate = std::min(gate, limit), up = std::clamp(up, -limit, limit);
    h.push_back(weight * silu(gate) * up);
  }
  std::vector<double> y;
  for (const auto& row : down_proj) y.push_back(dot(row, h));
  return y;
}

}  // namespace hadal::reference
