// Two products a group, all groups in one strided batch: dx = dy W and dW += dy' x.
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/operands.h"
#include "kernels/linear.h"

namespace hadal::kernels::cuda {

// bf16 activations: dy meets bf16 values of weights and inputs on tensor cores, so it is rounded to
// bf16 first; sums and results are f32.
void linear_backward(Stream& stream, const LinearBackwardArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0), rows = a.weight->rows(), cols = a.weight->cols();
  if (n_tokens == 0 || rows == 0 || cols == 0 || (!a.dx && !a.dweight)) return;
  HADAL_CHECK(rows % a.n_groups == 0);
  const std::int64_t group_rows = rows / a.n_groups;
  DType type = operand_type(a.x.dtype(), *a.weight);
  if (!suits_tensor_cores(group_rows)) type = DType::f32;
  const Operand dy = rows_operand(stream, a.dy, ActivationQuant::none, type);
  const std::int64_t x_cols = a.n_groups * cols;
  if (a.dx) {
    const Operand w = weight_operand(stream, *a.weight, type);
    gemm(stream, {.out = {.data = a.dx.bytes(), .ld = x_cols, .batch_stride = cols},
                  .a = {.data = dy.data, .ld = rows, .batch_stride = group_rows},
                  .b = {.data = w.data, .ld = cols, .batch_stride = group_rows * cols},
                  .m = n_tokens,
                  .n = cols,
                  .k = group_rows,
                  .n_batch = a.n_groups,
                  .operands = type});
  }
  if (a.dweight) {
    const Operand x = rows_operand(stream, a.x, a.activation_quant, type);
    gemm(stream, {.out = {.data = a.dweight.bytes(), .ld = cols, .batch_stride = group_rows * cols},
                  .a = {.data = dy.data,
                        .ld = rows,
                        .batch_stride = group_rows,
                        .transposed = Transposed::yes},
                  .b = {.data = x.data, .ld = x_cols, .batch_stride = cols},
                  .m = group_rows,
                  .n = cols,
                  .k = n_tokens,
                  .n_batch = a.n_groups,
                  .operands = type,
                  .beta = 1.0f});
  }
}

}  // namespace hadal::kernels::cuda
