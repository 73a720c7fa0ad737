#include "kernels/newton_schulz.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "support/dense.h"

namespace hadal {
namespace {

using test::Dense;

const KernelRegistry& registry() {
  static const KernelRegistry instance = [] {
    KernelRegistry r;
    kernels::cpu::register_kernels(r);
    return r;
  }();
  return instance;
}

void run(const Tensor& x, std::span<const NewtonSchulzStep> schedule, int n_threads = 2) {
  ThreadPool pool(n_threads);
  Stream stream(pool);
  const Tensor workspace =
      Tensor::empty({newton_schulz_workspace(x.dim(0), x.dim(1), x.dim(2))}, DType::f32);
  registry().find(kNewtonSchulz, {DeviceKind::cpu, DType::f32})(stream, {x, workspace, schedule});
}

Tensor batch_of(const std::vector<Dense>& matrices) {
  const auto n = static_cast<std::int64_t>(matrices.size());
  const std::int64_t numel = matrices[0].rows * matrices[0].cols;
  Tensor t = Tensor::empty({n, matrices[0].rows, matrices[0].cols}, DType::f32);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < numel; ++j) {
      t.data<float>()[i * numel + j] =
          static_cast<float>(matrices[static_cast<std::size_t>(i)].v[static_cast<std::size_t>(j)]);
    }
  }
  return t;
}

Dense matrix_of(const Tensor& t, std::int64_t i) {
  Dense a(t.dim(1), t.dim(2));
  const float* x = t.data<const float>() + i * t.dim(1) * t.dim(2);
  for (std::size_t j = 0; j < a.v.size(); ++j) a.v[j] = x[j];
  return a;
}

Dense normalised(Dense a) {
  const double norm = test::frobenius(a);
  for (double& x : a.v) x /= norm;
  return a;
}

double scalar_map(double s, std::span<const NewtonSchulzStep> schedule) {
  for (const NewtonSchulzStep& step : schedule) {
    s = s * (step.a + s * s * (step.b + s * s * static_cast<double>(step.c)));
  }
  return s;
}

// training.md §1.1, as a map of one singular value. (Its 1.13 and 1.002 are 1.1344 and 1.00202.)
TEST(NewtonSchulz, TheHybridScheduleMapsSingularValuesAsDerived) {
  const std::span<const NewtonSchulzStep> all = kHybridSchedule, first = all.first(8);
  for (double e = -3.0; e <= 0.0; e += 1e-3) {
    const double s = std::pow(10.0, e);
    EXPECT_GE(scalar_map(s, first), 0.68) << s;
    EXPECT_LE(scalar_map(s, first), 1.135) << s;
    EXPECT_GE(scalar_map(s, all), 1.0 - 1e-12) << s;
    EXPECT_LE(scalar_map(s, all), 1.0006) << s;
  }
  for (double e = -4.0; e <= -3.0; e += 1e-3) {
    const double s = std::pow(10.0, e);
    EXPECT_GE(scalar_map(s, all), 1.0 - 1e-12) << s;
    EXPECT_LE(scalar_map(s, all), 1.00205) << s;
  }
  EXPECT_NEAR(scalar_map(1e-5, all), 0.69, 0.01);
  EXPECT_LT(scalar_map(1e-6, all), 0.1);
}

// Singular values of X U diag(s) V' with log-uniform s, Frobenius norm 1, none below 1e-3.
std::vector<Dense> log_uniform_spectrum(std::int64_t rows, std::int64_t cols, std::size_t n) {
  std::mt19937 rng(5);
  std::uniform_real_distribution<double> exponent(-2.0, 0.0);
  std::vector<Dense> matrices;
  for (std::size_t i = 0; i < n; ++i) {
    Dense left = test::random_orthonormal_rows(rows, rows, rng);
    const Dense right = test::random_orthonormal_rows(rows, cols, rng);
    std::vector<double> s(static_cast<std::size_t>(rows));
    double norm = 0;
    for (double& x : s) x = std::pow(10.0, exponent(rng)), norm += x * x;
    for (double& x : s) x = std::max(1e-3, x / std::sqrt(norm));
    s[0] = 1e-3;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < rows; ++k) left(r, k) *= s[static_cast<std::size_t>(k)];
    }
    matrices.push_back(test::product(left, right));
  }
  return matrices;
}

TEST(NewtonSchulz, SpectraOfMatricesEndWhereTheMapSays) {
  const std::vector<Dense> matrices = log_uniform_spectrum(40, 72, 3);
  EXPECT_NEAR(test::singular_values(matrices[0]).front(), 1e-3, 1e-9);
  // f32 products of numbers near 1 are off by some 1e-6.
  constexpr double kRounding = 2e-5;
  const Tensor stage1 = batch_of(matrices);
  run(stage1, std::span(kHybridSchedule).first(8));
  const Tensor all = batch_of(matrices);
  run(all, kHybridSchedule);
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::vector<double> after8 = test::singular_values(matrix_of(stage1, i));
    EXPECT_GE(after8.front(), 0.68);
    EXPECT_LE(after8.back(), 1.135);
    const std::vector<double> after10 = test::singular_values(matrix_of(all, i));
    EXPECT_GE(after10.front(), 1.0 - kRounding);
    EXPECT_LE(after10.back(), 1.0006 + kRounding);
  }
}

TEST(NewtonSchulz, TheOtherTablesDoWhatTheirAuthorsSay) {
  const std::span<const NewtonSchulzStep> polar = kPolarExpressSchedule, quintic = kQuinticSchedule;
  for (double e = -3.0; e <= 0.0; e += 1e-3) {
    const double s = std::pow(10.0, e);
    EXPECT_NEAR(scalar_map(s, polar), 1.0, 1e-6) << s;
    if (e < -1.5) continue;
    EXPECT_GE(scalar_map(s, quintic), 0.68) << s;
    EXPECT_LE(scalar_map(s, quintic), 1.21) << s;
  }
  // An odd number of steps ends in the caller's memory too.
  const std::vector<Dense> matrices = log_uniform_spectrum(8, 12, 1);
  const Tensor x = batch_of(matrices);
  run(x, kQuinticSchedule);
  const Dense wanted = test::newton_schulz_f64(matrices[0], kQuinticSchedule);
  const Dense found = matrix_of(x, 0);
  for (std::size_t i = 0; i < wanted.v.size(); ++i) EXPECT_NEAR(found.v[i], wanted.v[i], 1e-5);
}

struct Size {
  std::int64_t n, rows, cols;
};

TEST(NewtonSchulz, EqualsTheDefinitionForEveryShape) {
  std::mt19937 rng(2);
  // One row, squares, one past a tile and past a panel of the symmetric products, many and few.
  for (const Size& size : {Size{1, 1, 1}, {3, 1, 40}, {2, 5, 7}, {5, 33, 33}, {1, 129, 140}}) {
    std::vector<Dense> matrices;
    for (std::int64_t i = 0; i < size.n; ++i) {
      matrices.push_back(normalised(test::random_dense(size.rows, size.cols, rng)));
    }
    const Tensor x = batch_of(matrices);
    run(x, kHybridSchedule);
    for (std::int64_t i = 0; i < size.n; ++i) {
      const Dense wanted =
          test::newton_schulz_f64(matrices[static_cast<std::size_t>(i)], kHybridSchedule);
      const Dense found = matrix_of(x, i);
      double worst = 0;
      for (std::size_t j = 0; j < wanted.v.size(); ++j) {
        worst = std::max(worst, std::fabs(found.v[j] - wanted.v[j]));
      }
      // The directions of small singular values carry the rounding of the large ones, amplified by
      // their ratio: some 1e3 times 1e-7.
      EXPECT_LT(worst, 2e-3) << size.rows << " x " << size.cols;
    }
  }
}

TEST(NewtonSchulz, BitsDoNotDependOnThreadsOrOnTheBatch) {
  std::mt19937 rng(9);
  std::vector<Dense> matrices;
  for (int i = 0; i < 7; ++i) matrices.push_back(normalised(test::random_dense(70, 150, rng)));
  const Tensor wanted = batch_of(matrices);
  run(wanted, kHybridSchedule, 1);
  for (const int n_threads : {2, 3, 4}) {
    const Tensor found = batch_of(matrices);
    run(found, kHybridSchedule, n_threads);
    EXPECT_EQ(std::memcmp(found.bytes(), wanted.bytes(), wanted.nbytes()), 0) << n_threads;
  }
  const Tensor alone = batch_of({matrices[4]});
  run(alone, kHybridSchedule, 3);
  EXPECT_EQ(std::memcmp(alone.bytes(), wanted.slice(4, 5).bytes(), alone.nbytes()), 0);
}

TEST(NewtonSchulz, NothingToDo) {
  run(Tensor::zeros({0, 4, 8}, DType::f32), kHybridSchedule);
  const Tensor zero = Tensor::zeros({1, 4, 8}, DType::f32);
  run(zero, kHybridSchedule);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(zero.data<float>()[i], 0.0f);
}

TEST(NewtonSchulz, NanStaysInItsMatrix) {
  std::mt19937 rng(1);
  std::vector<Dense> matrices{normalised(test::random_dense(4, 6, rng)),
                              normalised(test::random_dense(4, 6, rng))};
  matrices[0](2, 3) = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = batch_of(matrices);
  run(x, kHybridSchedule);
  EXPECT_TRUE(std::isnan(x.data<float>()[0]));
  for (int i = 24; i < 48; ++i) EXPECT_TRUE(std::isfinite(x.data<float>()[i]));
}

}  // namespace
}  // namespace hadal
