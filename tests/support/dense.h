// Small dense matrices in f64, slow and obvious: what the optimizer's kernels are judged by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/newton_schulz.h"

namespace hadal::test {

struct Dense {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> v;

  Dense() = default;
  Dense(std::int64_t n_rows, std::int64_t n_cols)
      : rows(n_rows), cols(n_cols), v(static_cast<std::size_t>(n_rows * n_cols), 0.0) {}
  double& operator()(std::int64_t r, std::int64_t c) {
    return v[static_cast<std::size_t>(r * cols + c)];
  }
  double operator()(std::int64_t r, std::int64_t c) const {
    return v[static_cast<std::size_t>(r * cols + c)];
  }
};

inline Dense transposed(const Dense& a) {
  Dense t(a.cols, a.rows);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t c = 0; c < a.cols; ++c) t(c, r) = a(r, c);
  }
  return t;
}

inline Dense product(const Dense& a, const Dense& b) {
  Dense c(a.rows, b.cols);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t j = 0; j < b.cols; ++j) c(r, j) += a(r, k) * b(k, j);
    }
  }
  return c;
}

inline double frobenius(const Dense& a) {
  double sum = 0;
  for (const double x : a.v) sum += x * x;
  return std::sqrt(sum);
}

inline Dense random_dense(std::int64_t rows, std::int64_t cols, std::mt19937& rng) {
  std::normal_distribution<double> normal;
  Dense a(rows, cols);
  for (double& x : a.v) x = normal(rng);
  return a;
}

// n rows of length `cols`, orthonormal: Gram-Schmidt, twice.
inline Dense random_orthonormal_rows(std::int64_t n, std::int64_t cols, std::mt19937& rng) {
  Dense q = random_dense(n, cols, rng);
  for (std::int64_t i = 0; i < n; ++i) {
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t j = 0; j < i; ++j) {
        double dot = 0;
        for (std::int64_t c = 0; c < cols; ++c) dot += q(i, c) * q(j, c);
        for (std::int64_t c = 0; c < cols; ++c) q(i, c) -= dot * q(j, c);
      }
    }
    double norm = 0;
    for (std::int64_t c = 0; c < cols; ++c) norm += q(i, c) * q(i, c);
    for (std::int64_t c = 0; c < cols; ++c) q(i, c) /= std::sqrt(norm);
  }
  return q;
}

// Of the rows of a, rows <= cols, ascending: square roots of the eigenvalues of a a', by Jacobi.
inline std::vector<double> singular_values(const Dense& a) {
  Dense s = product(a, transposed(a));
  const std::int64_t n = s.rows;
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0;
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        off += s(p, q) * s(p, q);
        if (std::fabs(s(p, q)) < 1e-300) continue;
        const double theta = (s(q, q) - s(p, p)) / (2 * s(p, q));
        const double t = (theta < 0 ? -1.0 : 1.0) / (std::fabs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0), sn = t * c;
        for (std::int64_t k = 0; k < n; ++k) {
          const double x = s(k, p), y = s(k, q);
          s(k, p) = c * x - sn * y, s(k, q) = sn * x + c * y;
        }
        for (std::int64_t k = 0; k < n; ++k) {
          const double x = s(p, k), y = s(q, k);
          s(p, k) = c * x - sn * y, s(q, k) = sn * x + c * y;
        }
      }
    }
    if (off < 1e-28) break;
  }
  std::vector<double> values;
  for (std::int64_t i = 0; i < n; ++i) values.push_back(std::sqrt(std::max(0.0, s(i, i))));
  std::sort(values.begin(), values.end());
  return values;
}

// The definition, in f64, for a matrix of either orientation.
inline Dense newton_schulz_f64(const Dense& a, std::span<const NewtonSchulzStep> schedule) {
  if (a.rows > a.cols) return transposed(newton_schulz_f64(transposed(a), schedule));
  Dense x = a;
  for (const NewtonSchulzStep& step : schedule) {
    const Dense gram = product(x, transposed(x));
    const Dense gram_x = product(gram, x), gram2_x = product(gram, gram_x);
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      x.v[i] = step.a * x.v[i] + step.b * gram_x.v[i] + step.c * gram2_x.v[i];
    }
  }
  return x;
}

}  // namespace hadal::test
