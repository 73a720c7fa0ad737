// Dense f32 products for training, by oneDNN. Internal to the CPU backend: kernels call it, nobody
// else does. (Serving does not come here: its products have one chain of additions per element,
// kernels/cpu/dot.h.)
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"

namespace hadal::kernels::cpu {

// Rows of floats, `stride` floats apart (>= cols), so that columns of a wider matrix are a view.
struct MatrixView {
  float* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;

  [[nodiscard]] MatrixView row_range(std::int64_t begin, std::int64_t end) const {
    return {data + begin * stride, end - begin, cols, stride};
  }
  [[nodiscard]] MatrixView col_range(std::int64_t begin, std::int64_t end) const {
    return {data + begin, rows, end - begin, stride};
  }
};

enum class Transposed : std::uint8_t { no, yes };

// c = alpha * op(a) * op(b) + beta * c. With beta = 0, c is only written. c overlaps neither a nor
// b. An empty reduction leaves beta * c.
struct GemmProblem {
  MatrixView c, a, b;
  Transposed transpose_a = Transposed::no, transpose_b = Transposed::no;
  float alpha = 1.0f, beta = 0.0f;
};

// The bits of c depend on the shapes, strides and values of its own problem alone: not on the
// number of threads, nor on what else is in the batch. NaN and infinity go through.
// Throws Error invalid_argument when the shapes do not fit each other.
void gemm(ThreadPool& pool, const GemmProblem& problem);
void gemm_batch(ThreadPool& pool, std::span<const GemmProblem> problems);

}  // namespace hadal::kernels::cpu
