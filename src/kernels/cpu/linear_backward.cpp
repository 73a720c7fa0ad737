#include <vector>

#include "kernels/cpu/f32_rows.h"
#include "kernels/cpu/gemm.h"
#include "kernels/linear.h"

namespace hadal::kernels::cpu {

namespace {
// Views carry no const: gemm reads a and b only.
MatrixView matrix(const float* data, std::int64_t rows, std::int64_t cols) {
  return {const_cast<float*>(data), rows, cols, cols};
}
}  // namespace

void linear_backward(Stream& stream, const LinearBackwardArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0), rows = a.weight->rows(), cols = a.weight->cols();
  if (n_tokens == 0) return;
  const std::int64_t group_rows = rows / a.n_groups;
  thread_local std::vector<float> x_buffer, w_buffer;
  const MatrixView dy = matrix(a.dy.data<const float>(), n_tokens, rows);
  std::vector<GemmProblem> problems;
  if (a.dx) {
    const MatrixView w = matrix(f32_rows(stream.pool(), *a.weight, w_buffer), rows, cols);
    const MatrixView dx = matrix(a.dx.data<float>(), n_tokens, a.n_groups * cols);
    for (std::int64_t g = 0; g < a.n_groups; ++g) {
      problems.push_back({.c = dx.col_range(g * cols, (g + 1) * cols),
                          .a = dy.col_range(g * group_rows, (g + 1) * group_rows),
                          .b = w.row_range(g * group_rows, (g + 1) * group_rows)});
    }
  }
  if (a.dweight) {
    const MatrixView x = matrix(f32_rows(stream.pool(), a.x, a.activation_quant, x_buffer),
                                n_tokens, a.n_groups * cols);
    const MatrixView dw = matrix(a.dweight.data<float>(), rows, cols);
    for (std::int64_t g = 0; g < a.n_groups; ++g) {
      problems.push_back({.c = dw.row_range(g * group_rows, (g + 1) * group_rows),
                          .a = dy.col_range(g * group_rows, (g + 1) * group_rows),
                          .b = x.col_range(g * cols, (g + 1) * cols),
                          .transpose_a = Transposed::yes,
                          .beta = 1.0f});
    }
  }
  gemm_batch(stream.pool(), problems);
}

}  // namespace hadal::kernels::cpu
