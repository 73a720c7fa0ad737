// Against the definition in f64. The products are in bf16, so elements of the result are only as
// near as directions allow that had little weight in x; singular values tell whether it is right.
#include "kernels/newton_schulz.h"

#include "cuda/support.h"
#include "support/dense.h"

namespace hadal::test {
namespace {

class CudaNewtonSchulz : public CudaTest {
 protected:
  static Tensor batch_of(const std::vector<Dense>& matrices) {
    const auto n = static_cast<std::int64_t>(matrices.size());
    const std::int64_t numel = matrices[0].rows * matrices[0].cols;
    Tensor t = Tensor::empty({n, matrices[0].rows, matrices[0].cols}, DType::f32);
    for (std::int64_t i = 0; i < n * numel; ++i) {
      t.data<float>()[i] = static_cast<float>(
          matrices[static_cast<std::size_t>(i / numel)].v[static_cast<std::size_t>(i % numel)]);
    }
    return t;
  }
  static Dense matrix_of(const Tensor& t, std::int64_t i) {
    Dense a(t.dim(1), t.dim(2));
    const float* x = t.data<float>() + i * t.dim(1) * t.dim(2);
    for (std::size_t j = 0; j < a.v.size(); ++j) a.v[j] = x[j];
    return a;
  }
  std::vector<Dense> normals(int n, std::int64_t rows, std::int64_t cols) {
    std::vector<Dense> matrices;
    for (int i = 0; i < n; ++i) {
      Dense a = random_dense(rows, cols, rng());
      const double norm = frobenius(a);
      for (double& x : a.v) x /= norm;
      matrices.push_back(std::move(a));
    }
    return matrices;
  }
  // Values spread evenly over their logarithms, none below 1e-3 of a Frobenius norm of 1.
  Dense log_uniform(std::int64_t rows, std::int64_t cols) {
    std::uniform_real_distribution<double> exponent(-2.0, 0.0);
    Dense left = random_orthonormal_rows(rows, rows, rng());
    std::vector<double> s(static_cast<std::size_t>(rows));
    double norm = 0;
    for (double& x : s) x = std::pow(10.0, exponent(rng())), norm += x * x;
    for (double& x : s) x = std::max(1e-3, x / std::sqrt(norm));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < rows; ++k) left(r, k) *= s[static_cast<std::size_t>(k)];
    }
    return product(left, random_orthonormal_rows(rows, cols, rng()));
  }
  Tensor run(const Tensor& x, std::span<const NewtonSchulzStep> schedule) {
    const Tensor device = to_device(x);
    const Tensor workspace =
        device_empty({newton_schulz_workspace(x.dim(0), x.dim(1), x.dim(2))}, DType::f32);
    run_gpu(kNewtonSchulz, DType::f32, {device, workspace, schedule});
    return to_host(device);
  }
};

struct Size {
  int n;
  std::int64_t rows, cols;
};

// Elementwise bf16 rounding, with the noise of small directions that every step amplifies: an
// emulation of these very roundings measured up to 2.5 % in relative L2 over such matrices.
TEST_F(CudaNewtonSchulz, NearTheDefinitionForEveryShape) {
  for (const Size& size :
       {Size{1, 1, 1}, {3, 1, 40}, {2, 5, 7}, {5, 33, 33}, {2, 40, 72}, {1, 129, 140}}) {
    const std::vector<Dense> matrices = normals(size.n, size.rows, size.cols);
    for (const std::span<const NewtonSchulzStep> schedule :
         {std::span<const NewtonSchulzStep>(kHybridSchedule),
          std::span<const NewtonSchulzStep>(kQuinticSchedule)}) {
      const Tensor found = run(batch_of(matrices), schedule);
      std::vector<Dense> wanted;
      for (const Dense& a : matrices) wanted.push_back(newton_schulz_f64(a, schedule));
      expect_close(found, batch_of(wanted), 4e-2, 0,
                   std::to_string(size.rows) + " x " + std::to_string(size.cols));
    }
  }
}

// training.md §1.1 says [1, 1.0006] after all ten steps. The last rounding of X to bf16 moves a
// singular value by 2^-9 at most, that of the factor, whose diagonal is near -1, by as much.
TEST_F(CudaNewtonSchulz, SingularValuesEndAtOne) {
  std::vector<Dense> matrices;
  for (int i = 0; i < 3; ++i) matrices.push_back(log_uniform(40, 72));
  const Tensor first = run(batch_of(matrices), std::span(kHybridSchedule).first(8));
  const Tensor all = run(batch_of(matrices), kHybridSchedule);
  const Tensor polar = run(batch_of(matrices), kPolarExpressSchedule);
  for (std::int64_t i = 0; i < 3; ++i) {
    const std::vector<double> after8 = singular_values(matrix_of(first, i));
    EXPECT_GE(after8.front(), 0.66);
    EXPECT_LE(after8.back(), 1.16);
    for (const Tensor& x : {all, polar}) {
      const std::vector<double> s = singular_values(matrix_of(x, i));
      EXPECT_GE(s.front(), 0.99);
      EXPECT_LE(s.back(), 1.01);
    }
  }
}

TEST_F(CudaNewtonSchulz, AMatrixAloneIsTheMatrixInABatch) {
  for (const Size& size : {Size{64, 70, 150}, {64, 16, 64}, {100, 128, 256}}) {
    const Tensor x = batch_of(normals(size.n, size.rows, size.cols));
    const Tensor all = run(x, kHybridSchedule);
    for (const std::int64_t i : {0, 4, size.n - 1}) {
      const Tensor alone = run(x.slice(i, i + 1), kHybridSchedule);
      expect_same_bytes(alone, all.slice(i, i + 1), "matrix " + std::to_string(i));
    }
    const Tensor few = run(x.slice(0, 7), kHybridSchedule);
    expect_same_bytes(few, all.slice(0, 7), "seven matrices");
  }
}

TEST_F(CudaNewtonSchulz, NothingToDo) {
  run(Tensor::zeros({0, 4, 8}, DType::f32), kHybridSchedule);
  const Tensor zero = run(Tensor::zeros({1, 4, 8}, DType::f32), kHybridSchedule);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(zero.data<float>()[i], 0.0f);
}

TEST_F(CudaNewtonSchulz, NanStaysInItsMatrix) {
  std::vector<Dense> matrices = normals(2, 4, 6);
  matrices[0](2, 3) = std::nan("");
  const Tensor x = run(batch_of(matrices), kHybridSchedule);
  EXPECT_TRUE(std::isnan(x.data<float>()[0]));
  for (int i = 24; i < 48; ++i) EXPECT_TRUE(std::isfinite(x.data<float>()[i]));
}

}  // namespace
}  // namespace hadal::test
