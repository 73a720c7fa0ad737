// The kernels of one optimizer step: Muon's momentum and update, AdamW, sums of squares.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/adamw.h"
#include "kernels/muon.h"
#include "kernels/newton_schulz.h"
#include "kernels/sum_squares.h"
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

template <class Args>
void launch(KernelName<Args> name, const Args& args, int n_threads = 2) {
  ThreadPool pool(n_threads);
  Stream stream(pool);
  registry().find(name, {DeviceKind::cpu, DType::f32})(stream, args);
}

Tensor random_tensor(Shape shape, std::mt19937& rng, float sigma = 1.0f) {
  std::normal_distribution<float> normal(0.0f, sigma);
  Tensor t = Tensor::empty(shape, DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = normal(rng);
  return t;
}

Dense dense(const Tensor& t) {
  Dense a(t.dim(0), t.dim(1));
  for (std::size_t i = 0; i < a.v.size(); ++i) a.v[i] = t.data<const float>()[i];
  return a;
}

struct Matrix {
  Tensor weight, gradient, momentum;
  Matrix(std::int64_t rows, std::int64_t cols, std::mt19937& rng)
      : weight(random_tensor({rows, cols}, rng, 0.02f)),
        gradient(random_tensor({rows, cols}, rng)),
        momentum(Tensor::zeros({rows, cols}, DType::f32)) {}
  [[nodiscard]] MuonMatrix view() const { return {weight, gradient, momentum}; }
};

struct StepOptions {
  double lr = 1e-2, decay = 0.1, gamma = 0.18;
  float momentum = 0.95f, gradient_scale = 1.0f;
  int n_threads = 2;
};

// One step of Muon on matrices of one shape; returns the sums of squares of the updates.
std::vector<double> muon_step(const std::vector<Matrix>& all, const StepOptions& o) {
  std::vector<MuonMatrix> matrices;
  for (const Matrix& m : all) matrices.push_back(m.view());
  const auto n = static_cast<std::int64_t>(all.size());
  const Shape& s = all[0].weight.shape();
  const std::int64_t rows = std::min(s[0], s[1]), cols = std::max(s[0], s[1]);
  const Tensor x = Tensor::empty({n, rows, cols}, DType::f32);
  const Tensor work = Tensor::empty({newton_schulz_workspace(n, rows, cols)}, DType::f32);
  std::vector<double> sums(all.size());
  launch(kMuonMomentum, {x, matrices, o.momentum, o.gradient_scale}, o.n_threads);
  launch(kNewtonSchulz, {x, work, kHybridSchedule}, o.n_threads);
  launch(kMuonUpdate, {x, matrices, o.lr, o.decay, o.gamma, sums}, o.n_threads);
  return sums;
}

// The paper's algorithm 1, line by line, in f64.
struct Reference {
  Dense weight, momentum;
  explicit Reference(const Matrix& m)
      : weight(dense(m.weight)), momentum(m.weight.dim(0), m.weight.dim(1)) {}
  void step(const Dense& g, const StepOptions& o) {
    Dense ahead = momentum;
    const double mu = o.momentum;
    for (std::size_t i = 0; i < g.v.size(); ++i) {
      const double scaled = g.v[i] * o.gradient_scale;
      momentum.v[i] = mu * momentum.v[i] + scaled;
      ahead.v[i] = mu * momentum.v[i] + scaled;
    }
    const double norm = test::frobenius(ahead);
    for (double& x : ahead.v) x /= norm;
    const Dense polar = test::newton_schulz_f64(ahead, kHybridSchedule);
    const double factor =
        std::sqrt(static_cast<double>(std::max(weight.rows, weight.cols))) * o.gamma;
    for (std::size_t i = 0; i < weight.v.size(); ++i) {
      weight.v[i] = weight.v[i] * (1 - o.lr * o.decay) - o.lr * factor * polar.v[i];
    }
  }
};

TEST(MuonKernels, FollowTheAlgorithmForSeveralSteps) {
  std::mt19937 rng(17);
  // Wide, tall, one past the rows that are turned at once (16384 / cols).
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{12, 30}, {30, 12}, {1, 9}, {9, 1}, {547, 30}}) {
    std::vector<Matrix> all;
    for (int i = 0; i < 3; ++i) all.emplace_back(rows, cols, rng);
    std::vector<Reference> references(all.begin(), all.end());
    StepOptions o;
    for (int step = 0; step < 4; ++step) {
      o.lr = 1e-2 / (1 + step), o.gradient_scale = step == 2 ? 0.25f : 1.0f;
      for (std::size_t i = 0; i < all.size(); ++i) {
        const Tensor g = random_tensor({rows, cols}, rng, 3.0f);
        std::memcpy(all[i].gradient.bytes(), g.bytes(), g.nbytes());
        references[i].step(dense(g), o);
      }
      (void)muon_step(all, o);
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Dense found = dense(all[i].weight);
      for (std::size_t j = 0; j < found.v.size(); ++j) {
        // Updates have elements near lr * gamma = 1.8e-3; these spectra amplify rounding little.
        ASSERT_NEAR(found.v[j], references[i].weight.v[j], 2e-7) << rows << "x" << cols;
      }
      const Dense momentum = dense(all[i].momentum);
      for (std::size_t j = 0; j < momentum.v.size(); ++j) {
        ASSERT_NEAR(momentum.v[j], references[i].momentum.v[j], 1e-5);
      }
    }
  }
}

TEST(MuonKernels, TheUpdateHasItsRmsWhateverTheShape) {
  std::mt19937 rng(23);
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{64, 96}, {128, 32}, {48, 48}, {4, 512}}) {
    std::vector<Matrix> all;
    all.emplace_back(rows, cols, rng);
    const Dense before = dense(all[0].weight);
    const StepOptions o{.lr = 0.5, .decay = 0.0};
    const std::vector<double> sums = muon_step(all, o);
    const Dense after = dense(all[0].weight);
    double sum = 0;
    for (std::size_t i = 0; i < before.v.size(); ++i) {
      const double change = (after.v[i] - before.v[i]) / o.lr;
      sum += change * change;
    }
    const auto n = static_cast<double>(rows * cols);
    EXPECT_NEAR(std::sqrt(sum / n), 0.18, 0.0018) << rows << "x" << cols;
    EXPECT_NEAR(sums[0], sum, 1e-4 * sum);
  }
}

TEST(MuonKernels, NoGradientDecaysAndNothingElse) {
  std::mt19937 rng(1);
  std::vector<Matrix> all;
  all.emplace_back(4, 6, rng);
  std::memset(all[0].gradient.bytes(), 0, all[0].gradient.nbytes());
  const Dense before = dense(all[0].weight);
  (void)muon_step(all, {.lr = 0.1, .decay = 0.5});
  const Dense after = dense(all[0].weight);
  for (std::size_t i = 0; i < before.v.size(); ++i) {
    EXPECT_NEAR(after.v[i], 0.95 * before.v[i], 1e-8);
  }
}

TEST(MuonKernels, BitsDoNotDependOnThreads) {
  const auto weights_after = [](int n_threads) {
    std::mt19937 rng(31);
    std::vector<Matrix> all;
    for (int i = 0; i < 5; ++i) all.emplace_back(300, 90, rng);
    (void)muon_step(all, {.n_threads = n_threads});
    (void)muon_step(all, {.gradient_scale = 0.3f, .n_threads = n_threads});
    std::vector<float> bits;
    for (const Matrix& m : all) {
      bits.insert(bits.end(), m.weight.data<float>(), m.weight.data<float>() + m.weight.numel());
    }
    return bits;
  };
  const std::vector<float> one = weights_after(1);
  for (const int n_threads : {2, 3}) {
    const std::vector<float> other = weights_after(n_threads);
    EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0);
  }
}

struct AdamwCase {
  Tensor weight, mean, variance;
  AdamwCase(const Shape& shape, std::mt19937& rng)
      : weight(random_tensor(shape, rng, 0.02f)),
        mean(Tensor::zeros(shape, DType::f32)),
        variance(Tensor::zeros(shape, DType::f32)) {}
};

TEST(AdamwKernel, FollowsTheFormulaFor20Steps) {
  std::mt19937 rng(3);
  const Shape shapes[] = {{7}, {16384 + 5}, {3, 11}};
  const double decays[] = {0.0, 0.1, 0.5};
  std::vector<AdamwCase> all;
  std::vector<std::vector<double>> w, m, v;
  for (const Shape& shape : shapes) {
    const AdamwCase& c = all.emplace_back(shape, rng);
    const auto n = static_cast<std::size_t>(c.weight.numel());
    w.emplace_back(c.weight.data<float>(), c.weight.data<float>() + n);
    m.emplace_back(n, 0.0), v.emplace_back(n, 0.0);
  }
  const double lr = 1e-2, beta1 = 0.9, beta2 = 0.95, eps = 1e-20;
  for (int step = 1; step <= 20; ++step) {
    const float scale = step % 5 == 0 ? 0.5f : 1.0f;
    std::vector<Tensor> gradients;
    std::vector<AdamwParameter> parameters;
    for (std::size_t i = 0; i < all.size(); ++i) {
      gradients.push_back(random_tensor(shapes[i], rng, i == 1 ? 1e-6f : 2.0f));
      parameters.push_back({all[i].weight, gradients[i], all[i].mean, all[i].variance, decays[i]});
    }
    std::vector<double> sums(all.size());
    launch(kAdamw, {parameters, step, lr, beta1, beta2, eps, scale, sums});
    for (std::size_t i = 0; i < all.size(); ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < w[i].size(); ++j) {
        const double g = static_cast<double>(gradients[i].data<float>()[j]) * scale;
        m[i][j] = beta1 * m[i][j] + (1 - beta1) * g;
        v[i][j] = beta2 * v[i][j] + (1 - beta2) * g * g;
        const double u = m[i][j] / (1 - std::pow(beta1, step)) /
                         (std::sqrt(v[i][j] / (1 - std::pow(beta2, step))) + eps);
        w[i][j] = w[i][j] * (1 - lr * decays[i]) - lr * u;
        sum += u * u;
      }
      EXPECT_NEAR(sums[i], sum, 1e-5 * sum + 1e-9);
    }
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < w[i].size(); ++j) {
      // 20 updates of size lr, each right to a few f32 ulp, on weights below 1.
      ASSERT_NEAR(all[i].weight.data<float>()[j], w[i][j], 2e-7) << i << " " << j;
    }
  }
}

TEST(AdamwKernel, VanishedVarianceMovesNothing) {
  // The square of 1e-25 is below f32: v stays 0 while m does not, and m / (0 + 1e-20) would be
  // 1e-6.
  std::mt19937 rng(3);
  const AdamwCase c({4}, rng);
  const Tensor gradient = Tensor::zeros({4}, DType::f32);
  gradient.data<float>()[1] = 1e-25f, gradient.data<float>()[2] = -1e-25f;
  gradient.data<float>()[3] = 1.0f;
  const Tensor before = Tensor::empty({4}, DType::f32);
  std::memcpy(before.bytes(), c.weight.bytes(), 16);
  const AdamwParameter p[] = {{c.weight, gradient, c.mean, c.variance, 0.0}};
  std::vector<double> sums(1);
  launch(kAdamw, {p, 1, 1.0, 0.9, 0.95, 1e-20, 1.0f, sums});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(c.weight.data<float>()[i], before.data<float>()[i]) << i;
  }
  EXPECT_NE(c.mean.data<float>()[1], 0.0f);
  // A first step has size lr, whatever the gradient; eps is far too small to matter.
  EXPECT_NEAR(c.weight.data<float>()[3], before.data<float>()[3] - 1.0f, 1e-6);
  EXPECT_NEAR(sums[0], 1.0, 1e-6);
}

TEST(SumSquares, IsExactWhereItCanBeAndTellsNonFinite) {
  std::mt19937 rng(5);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  const Tensor empty = Tensor::zeros({0}, DType::f32);
  Tensor ints = Tensor::zeros({70001}, DType::f32), big = Tensor::zeros({9}, DType::f32);
  double wanted = 0;
  for (std::int64_t i = 0; i < ints.numel(); ++i) {
    ints.data<float>()[i] = static_cast<float>(i % 13 - 6);
    wanted += static_cast<double>((i % 13 - 6) * (i % 13 - 6));
  }
  for (int i = 0; i < 9; ++i) big.data<float>()[i] = largest;
  const Tensor with_nan = random_tensor({40000}, rng), with_inf = random_tensor({3, 5}, rng);
  with_nan.data<float>()[39999] = nan;
  with_inf.data<float>()[7] = -inf;
  const TensorView all[] = {ints, empty, big, with_nan, with_inf};
  std::vector<double> one(5), three(5);
  launch(kSumSquares, {all, one}, 1);
  EXPECT_EQ(one[0], wanted);
  EXPECT_EQ(one[1], 0.0);
  EXPECT_TRUE(std::isfinite(one[2]));
  EXPECT_FALSE(std::isfinite(one[3]));
  EXPECT_FALSE(std::isfinite(one[4]));
  launch(kSumSquares, {all, three}, 3);
  EXPECT_EQ(std::memcmp(one.data(), three.data(), 5 * sizeof(double)), 0);
}

}  // namespace
}  // namespace hadal
