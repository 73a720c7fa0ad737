#include "kernels/cpu/gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"

namespace hadal::kernels::cpu {
namespace {

constexpr float kUntouched = 1234.5f;

// A matrix with room around it: rows are `gap` floats further apart than they are long.
struct Matrix {
  std::vector<float> values;
  MatrixView view;

  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t gap, std::mt19937& rng)
      : values(static_cast<std::size_t>(rows * (cols + gap)) + 1, kUntouched) {
    view = {values.data(), rows, cols, cols + gap};
    std::normal_distribution<float> normal;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) view.data[r * view.stride + c] = normal(rng);
    }
  }
  [[nodiscard]] double at(std::int64_t r, std::int64_t c, Transposed t = Transposed::no) const {
    if (t == Transposed::yes) std::swap(r, c);
    return view.data[r * view.stride + c];
  }
};

struct Case {
  std::int64_t rows, cols, depth;
  Transposed ta = Transposed::no, tb = Transposed::no;
  float alpha = 1.0f, beta = 0.0f;
  std::int64_t gap = 0;
};

void expect_product(const Case& t) {
  SCOPED_TRACE("rows " + std::to_string(t.rows) + " cols " + std::to_string(t.cols) + " depth " +
               std::to_string(t.depth) + (t.ta == Transposed::yes ? " a'" : " a") +
               (t.tb == Transposed::yes ? " b'" : " b") + " gap " + std::to_string(t.gap));
  std::mt19937 rng(7);
  const bool ta = t.ta == Transposed::yes, tb = t.tb == Transposed::yes;
  const Matrix a(ta ? t.depth : t.rows, ta ? t.rows : t.depth, t.gap, rng);
  const Matrix b(tb ? t.cols : t.depth, tb ? t.depth : t.cols, t.gap, rng);
  Matrix c(t.rows, t.cols, t.gap, rng);
  const Matrix before = c;
  const MatrixView out{c.values.data(), t.rows, t.cols, c.view.stride};

  ThreadPool pool(2);
  gemm(pool, {out, a.view, b.view, t.ta, t.tb, t.alpha, t.beta});

  for (std::int64_t r = 0; r < t.rows; ++r) {
    for (std::int64_t col = 0; col < t.cols; ++col) {
      double sum = 0, magnitude = 0;
      for (std::int64_t k = 0; k < t.depth; ++k) {
        const double term = a.at(r, k, t.ta) * b.at(k, col, t.tb);
        sum += term, magnitude += std::fabs(term);
      }
      const auto i = static_cast<std::size_t>(r * out.stride + col);
      const double old = t.beta == 0.0f ? 0.0 : t.beta * static_cast<double>(before.values[i]);
      // Any order of `depth` f32 additions errs by at most depth * 2^-24 of the magnitude.
      const double bound = 0x1p-24 * static_cast<double>(t.depth + 3) *
                               (std::fabs(t.alpha) * magnitude + std::fabs(old)) +
                           1e-30;
      ASSERT_NEAR(c.values[i], t.alpha * sum + old, bound) << "at " << r << ", " << col;
    }
    for (std::int64_t g = t.cols; g < out.stride; ++g) {
      ASSERT_EQ(c.values[static_cast<std::size_t>(r * out.stride + g)], kUntouched) << "gap";
    }
  }
  ASSERT_EQ(c.values.back(), kUntouched);
}

TEST(Gemm, EqualsPlainLoopsForEveryTransposeAndShape) {
  for (const Transposed ta : {Transposed::no, Transposed::yes}) {
    for (const Transposed tb : {Transposed::no, Transposed::yes}) {
      for (const std::int64_t rows : {1, 2, 17, 65}) {
        for (const std::int64_t cols : {1, 3, 16, 97}) {
          for (const std::int64_t depth : {1, 7, 64, 131}) {
            expect_product({rows, cols, depth, ta, tb, 1.0f, 0.0f, rows % 3});
          }
        }
      }
      // One past the largest block, and many blocks both ways.
      expect_product({257, 33, 19, ta, tb, 1.0f, 0.0f, 5});
      expect_product({31, 513, 23, ta, tb, 1.0f, 0.0f, 0});
      expect_product({300, 530, 8, ta, tb, -0.5f, 2.0f, 1});
    }
  }
}

TEST(Gemm, LongReductionsOfSmallOutputs) {
  expect_product({24, 40, 5000, Transposed::yes, Transposed::no, 1.0f, 1.0f, 3});
  expect_product({1, 1, 4099, Transposed::no, Transposed::yes});
}

TEST(Gemm, AlphaAndBeta) {
  for (const float alpha : {0.0f, 1.0f, -2.0f}) {
    for (const float beta : {0.0f, 1.0f, 0.25f}) {
      expect_product({37, 41, 43, Transposed::no, Transposed::yes, alpha, beta, 2});
    }
  }
}

TEST(Gemm, EmptyDimensions) {
  for (const float beta : {0.0f, 1.0f, 0.5f}) {
    expect_product({5, 6, 0, Transposed::no, Transposed::no, 1.0f, beta, 1});
    expect_product({5, 6, 0, Transposed::yes, Transposed::yes, 1.0f, beta, 1});
  }
  expect_product({0, 6, 3});
  expect_product({5, 0, 3});
  expect_product({0, 0, 0});
}

TEST(Gemm, BetaZeroDoesNotReadTheOutput) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t depth : {0, 3}) {
    std::vector<float> a(6, 1.0f), b(6, 1.0f), c(4, nan);
    ThreadPool pool(1);
    gemm(pool, {{c.data(), 2, 2, 2}, {a.data(), 2, depth, 3}, {b.data(), depth, 2, 2}});
    EXPECT_THAT(c, ::testing::Each(static_cast<float>(depth)));
  }
}

TEST(Gemm, ColumnsOfAWiderMatrixAreAView) {
  std::mt19937 rng(3);
  const Matrix wide(6, 10, 0, rng), b(4, 5, 0, rng);
  std::vector<float> c(30);
  ThreadPool pool(1);
  gemm(pool, {{c.data(), 6, 5, 5}, wide.view.col_range(3, 7), b.view});
  double sum = 0;
  for (std::int64_t k = 0; k < 4; ++k) sum += wide.at(5, 3 + k) * b.at(k, 4);
  EXPECT_NEAR(c[29], sum, 1e-5);
}

std::vector<GemmProblem> mixed_batch(std::vector<Matrix>& storage) {
  std::mt19937 rng(11);
  struct Sizes {
    std::int64_t rows, cols, depth;
    Transposed ta, tb;
  };
  const Sizes sizes[] = {{300, 200, 70, Transposed::no, Transposed::yes},
                         {0, 20, 7, Transposed::no, Transposed::no},
                         {130, 600, 33, Transposed::no, Transposed::no},
                         {70, 90, 1500, Transposed::yes, Transposed::no},
                         {1, 257, 64, Transposed::yes, Transposed::yes},
                         {20, 0, 7, Transposed::no, Transposed::no}};
  storage.reserve(3 * std::size(sizes));
  std::vector<GemmProblem> problems;
  for (const Sizes& s : sizes) {
    const bool ta = s.ta == Transposed::yes, tb = s.tb == Transposed::yes;
    const auto add = [&](std::int64_t rows, std::int64_t cols) {
      return storage.emplace_back(rows, cols, 3, rng).view;
    };
    const MatrixView c = add(s.rows, s.cols);
    const MatrixView a = add(ta ? s.depth : s.rows, ta ? s.rows : s.depth);
    const MatrixView b = add(tb ? s.cols : s.depth, tb ? s.depth : s.cols);
    problems.push_back({c, a, b, s.ta, s.tb, 1.0f, 0.5f});
  }
  return problems;
}

std::vector<float> batch_result(int n_threads, bool one_by_one) {
  std::vector<Matrix> storage;
  const std::vector<GemmProblem> problems = mixed_batch(storage);
  ThreadPool pool(n_threads);
  if (one_by_one) {
    for (const GemmProblem& p : problems) gemm(pool, p);
  } else {
    gemm_batch(pool, problems);
  }
  std::vector<float> all;
  for (std::size_t i = 0; i < storage.size(); i += 3) {
    all.insert(all.end(), storage[i].values.begin(), storage[i].values.end());
  }
  return all;
}

TEST(Gemm, BitsDoNotDependOnThreadsOrOnTheBatch) {
  const std::vector<float> one = batch_result(1, false);
  for (const int n_threads : {1, 2, 3}) {
    for (const bool one_by_one : {false, true}) {
      const std::vector<float> other = batch_result(n_threads, one_by_one);
      ASSERT_EQ(other.size(), one.size());
      EXPECT_EQ(std::memcmp(other.data(), one.data(), one.size() * sizeof(float)), 0)
          << n_threads << " threads, one by one: " << one_by_one;
    }
  }
}

TEST(Gemm, AnEmptyBatchIsNothingToDo) {
  ThreadPool pool(2);
  gemm_batch(pool, {});
}

TEST(Gemm, ShapesThatDoNotFitAreNamed) {
  std::vector<float> x(100);
  ThreadPool pool(1);
  try {
    gemm(pool, {{x.data(), 2, 3, 3}, {x.data(), 2, 4, 4}, {x.data(), 5, 3, 3}});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::invalid_argument);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("[2, 4] times [5, 3] is not [2, 3]"));
  }
}

}  // namespace
}  // namespace hadal::kernels::cpu
