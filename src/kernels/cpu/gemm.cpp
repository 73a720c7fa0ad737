#include "kernels/cpu/gemm.h"

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.h>

#include <algorithm>
#include <vector>

#include "core/error.h"

// Of libgomp, which oneDNN runs its loops on. Its header lies with GCC and nowhere else.
extern "C" void omp_set_num_threads(int n_threads);

namespace hadal::kernels::cpu {

namespace {

// The threads are the pool's: each oneDNN call stays on the thread that makes it. The setting is
// one of the calling thread, so it is made once on each.
void keep_to_one_thread() {
  thread_local bool done = false;
  if (done) return;
  omp_set_num_threads(1);
  done = true;
}

// An output is cut into blocks by the problem's own shape. Large enough that packing the operands
// is little beside the arithmetic, small enough that a weight gradient (few outputs, each a long
// sum) still occupies many threads. The reduction is never cut: that would be another sum.
struct BlockShape {
  std::int64_t rows, cols;
};

constexpr std::int64_t kMaxBlockRows = 256, kMaxBlockCols = 512;
constexpr std::int64_t kMinBlockRows = 64, kMinBlockCols = 96;
constexpr std::int64_t kWantedBlocks = 16;
constexpr std::int64_t kMinBlockProducts = 6'000'000;  // a tenth of a millisecond or less

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Equal parts of at most `largest`, rounded up to whole vectors.
std::int64_t even_part(std::int64_t n, std::int64_t largest) {
  return ceil_div(ceil_div(n, ceil_div(n, largest)), 16) * 16;
}

BlockShape block_shape(std::int64_t rows, std::int64_t cols, std::int64_t depth) {
  std::int64_t max_rows = kMaxBlockRows, max_cols = kMaxBlockCols;
  const auto can_halve = [&] {
    return (max_rows > kMinBlockRows || max_cols > kMinBlockCols) &&
           std::min(rows, max_rows) * std::min(cols, max_cols) * depth >= 2 * kMinBlockProducts;
  };
  while (ceil_div(rows, max_rows) * ceil_div(cols, max_cols) < kWantedBlocks && can_halve()) {
    const bool halve_rows =
        max_cols <= kMinBlockCols || (max_rows > kMinBlockRows && max_rows >= max_cols);
    std::int64_t& longer = halve_rows ? max_rows : max_cols;
    longer = std::max(longer / 2, halve_rows ? kMinBlockRows : kMinBlockCols);
  }
  return {even_part(rows, max_rows), even_part(cols, max_cols)};
}

std::int64_t depth_of(const GemmProblem& p) {
  return p.transpose_a == Transposed::yes ? p.a.rows : p.a.cols;
}

void check(const GemmProblem& p) {
  const bool ta = p.transpose_a == Transposed::yes, tb = p.transpose_b == Transposed::yes;
  const std::int64_t a_rows = ta ? p.a.cols : p.a.rows, a_cols = ta ? p.a.rows : p.a.cols;
  const std::int64_t b_rows = tb ? p.b.cols : p.b.rows, b_cols = tb ? p.b.rows : p.b.cols;
  if (a_rows != p.c.rows || b_cols != p.c.cols || a_cols != b_rows) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("gemm: [{}, {}] times [{}, {}] is not [{}, {}]", a_rows, a_cols, b_rows,
                            b_cols, p.c.rows, p.c.cols));
  }
  for (const MatrixView& m : {p.c, p.a, p.b}) HADAL_CHECK(m.stride >= m.cols && m.rows >= 0);
}

void scale_block(const MatrixView& c, float beta) {
  for (std::int64_t r = 0; r < c.rows; ++r) {
    float* row = c.data + r * c.stride;
    for (std::int64_t i = 0; i < c.cols; ++i) row[i] = beta == 0.0f ? 0.0f : beta * row[i];
  }
}

// One block of the output: rows [row, row_end), columns [col, col_end).
void multiply_block(const GemmProblem& p, std::int64_t row, std::int64_t row_end, std::int64_t col,
                    std::int64_t col_end) {
  const MatrixView c = p.c.row_range(row, row_end).col_range(col, col_end);
  const bool ta = p.transpose_a == Transposed::yes, tb = p.transpose_b == Transposed::yes;
  const std::int64_t depth = depth_of(p);
  if (depth == 0) return scale_block(c, p.beta);
  const float* a = p.a.data + (ta ? row : row * p.a.stride);
  const float* b = p.b.data + (tb ? col * p.b.stride : col);
  const dnnl_status_t status =
      dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', c.rows, c.cols, depth, p.alpha, a, p.a.stride, b,
                 p.b.stride, p.beta, c.data, c.stride);
  if (status != dnnl_success) {
    throw Error(status == dnnl_out_of_memory ? ErrorCode::out_of_memory : ErrorCode::device,
                fmt::format("gemm: oneDNN refused a product of [{}, {}] and [{}, {}], status {}",
                            c.rows, depth, depth, c.cols, static_cast<int>(status)));
  }
}

// Where a problem's blocks lie among those of the batch.
struct Tiling {
  std::int64_t first, across;
  BlockShape block;
};

}  // namespace

void gemm_batch(ThreadPool& pool, std::span<const GemmProblem> problems) {
  std::vector<Tiling> tilings;
  tilings.reserve(problems.size());
  std::int64_t n_blocks = 0;
  for (const GemmProblem& p : problems) {
    check(p);
    if (p.c.rows == 0 || p.c.cols == 0) {
      tilings.push_back({n_blocks, 1, {1, 1}});
      continue;
    }
    const BlockShape block = block_shape(p.c.rows, p.c.cols, depth_of(p));
    const std::int64_t across = ceil_div(p.c.cols, block.cols);
    tilings.push_back({n_blocks, across, block});
    n_blocks += across * ceil_div(p.c.rows, block.rows);
  }
  pool.parallel_for(n_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    keep_to_one_thread();
    for (std::int64_t i = begin; i < end; ++i) {
      // The last that begins at or before i: those without blocks share their first with the next.
      const auto after =
          std::upper_bound(tilings.begin(), tilings.end(), i,
                           [](std::int64_t x, const Tiling& t) { return x < t.first; });
      const Tiling& t = *(after - 1);
      const GemmProblem& p = problems[static_cast<std::size_t>(after - 1 - tilings.begin())];
      const std::int64_t row = (i - t.first) / t.across * t.block.rows;
      const std::int64_t col = (i - t.first) % t.across * t.block.cols;
      multiply_block(p, row, std::min(row + t.block.rows, p.c.rows), col,
                     std::min(col + t.block.cols, p.c.cols));
    }
  });
}

void gemm(ThreadPool& pool, const GemmProblem& problem) {
  gemm_batch(pool, std::span(&problem, 1));
}

}  // namespace hadal::kernels::cpu
