#include "kernels/newton_schulz.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/gemm.h"

namespace hadal::kernels::cpu {

namespace {

// X, a second X to write to, and the two squares of one matrix.
struct Work {
  MatrixView x, next, gram, factor;
};

constexpr std::int64_t kPanelRows = 128;

// The products of a symmetric c = alpha * a * op(b) on and above the diagonal, in panels of rows:
// with many panels half of the work is left out.
void add_upper_panels(std::vector<GemmProblem>& problems, const MatrixView& c, const MatrixView& a,
                      const MatrixView& b, Transposed transpose_b, float alpha) {
  const std::int64_t n = c.rows, n_panels = (n + kPanelRows - 1) / kPanelRows;
  for (std::int64_t p = 0; p < n_panels; ++p) {
    const std::int64_t begin = n * p / n_panels, end = n * (p + 1) / n_panels;
    problems.push_back(
        {c.row_range(begin, end).col_range(begin, n), a.row_range(begin, end),
         transpose_b == Transposed::yes ? b.row_range(begin, n) : b.col_range(begin, n),
         Transposed::no, transpose_b, alpha, 0.0f});
  }
}

// Rows [begin, end) of the upper half of c, plus b * gram and a on the diagonal, and their mirror
// image below it. Tiles, so that the mirrored writes stay in the cache.
void complete(const MatrixView& c, const MatrixView& gram, float a, float b, std::int64_t begin,
              std::int64_t end) {
  constexpr std::int64_t kTile = 32;
  for (std::int64_t col = begin; col < c.cols; col += kTile) {
    const std::int64_t col_end = std::min(col + kTile, c.cols);
    for (std::int64_t i = begin; i < end; ++i) {
      float* row = c.data + i * c.stride;
      const float* gram_row = gram.data + i * gram.stride;
      for (std::int64_t j = std::max(col, i); j < col_end; ++j) {
        row[j] = row[j] + b * gram_row[j];
        if (j == i) row[j] += a;
      }
      for (std::int64_t j = std::max(col, i + 1); j < col_end; ++j) {
        c.data[j * c.stride + i] = row[j];
      }
    }
  }
}

// As above without additions: the lower half becomes the upper one's mirror image.
void mirror(const MatrixView& c, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kTile = 32;
  for (std::int64_t col = begin; col < c.cols; col += kTile) {
    const std::int64_t col_end = std::min(col + kTile, c.cols);
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t j = std::max(col, i + 1); j < col_end; ++j) {
        c.data[j * c.stride + i] = c.data[i * c.stride + j];
      }
    }
  }
}

template <class Fn>
void for_row_blocks(ThreadPool& pool, std::span<Work> matrices, Fn&& fn) {
  constexpr std::int64_t kRows = 32;
  const std::int64_t rows = matrices[0].x.rows, n_blocks = (rows + kRows - 1) / kRows;
  const auto n = static_cast<std::int64_t>(matrices.size());
  pool.parallel_for(n * n_blocks, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i % n_blocks * kRows;
      fn(matrices[static_cast<std::size_t>(i / n_blocks)], row, std::min(row + kRows, rows));
    }
  });
}

// All steps for some matrices; the result is in x again.
void iterate(ThreadPool& pool, std::span<Work> matrices,
             std::span<const NewtonSchulzStep> schedule) {
  std::vector<GemmProblem> problems;
  const auto run = [&] {
    gemm_batch(pool, problems);
    problems.clear();
  };
  for (const NewtonSchulzStep& step : schedule) {
    // gram = X X',  factor = a I + b gram + c gram^2,  X <- factor X.
    for (const Work& w : matrices) {
      add_upper_panels(problems, w.gram, w.x, w.x, Transposed::yes, 1.0f);
    }
    run();
    for_row_blocks(pool, matrices, [](const Work& w, std::int64_t begin, std::int64_t end) {
      mirror(w.gram, begin, end);
    });
    for (const Work& w : matrices) {
      add_upper_panels(problems, w.factor, w.gram, w.gram, Transposed::no, step.c);
    }
    run();
    for_row_blocks(pool, matrices, [&](const Work& w, std::int64_t begin, std::int64_t end) {
      complete(w.factor, w.gram, step.a, step.b, begin, end);
    });
    for (Work& w : matrices) problems.push_back({w.next, w.factor, w.x});
    run();
    for (Work& w : matrices) std::swap(w.x, w.next);
  }
  if (schedule.size() % 2 == 0) return;
  for (Work& w : matrices) {
    std::memcpy(w.next.data, w.x.data,
                static_cast<std::size_t>(w.x.rows * w.x.cols) * sizeof(float));
  }
}

}  // namespace

void newton_schulz(Stream& stream, const NewtonSchulzArgs& a) {
  HADAL_CHECK(a.x.shape().rank() == 3 && a.x.dim(1) <= a.x.dim(2));
  const std::int64_t n = a.x.dim(0), rows = a.x.dim(1), cols = a.x.dim(2);
  if (n == 0 || rows == 0) return;
  HADAL_CHECK(a.workspace.numel() >= newton_schulz_workspace(n, rows, cols));
  std::vector<Work> matrices;
  for (std::int64_t i = 0; i < n; ++i) {
    float* x = a.x.data<float>() + i * rows * cols;
    float* work = a.workspace.data<float>() + newton_schulz_workspace(i, rows, cols);
    float* gram = work + rows * cols;
    matrices.push_back({{x, rows, cols, cols},
                        {work, rows, cols, cols},
                        {gram, rows, rows, rows},
                        {gram + rows * rows, rows, rows, rows}});
  }
  // Many matrices: one at a time on each thread, where it stays in the cache from step to step.
  // Few: all threads on each product. A product's bits are the same either way (gemm.h).
  ThreadPool& pool = stream.pool();
  if (n < 2 * pool.size()) return iterate(pool, matrices, a.schedule);
  pool.parallel_for(n, 1, [&](std::int64_t begin, std::int64_t end) {
    iterate(pool,
            std::span(matrices).subspan(static_cast<std::size_t>(begin),
                                        static_cast<std::size_t>(end - begin)),
            a.schedule);
  });
}

}  // namespace hadal::kernels::cpu
