// linear: its arguments as a Matmul. The numerics are in device/matmul.cuh.
#include "kernels/linear.h"

#include <string>

#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

void linear(Stream& stream, const LinearArgs& a) {
  const std::int64_t n_tokens = a.x.dim(0), rows = a.weight->rows(), cols = a.weight->cols();
  if (a.x.dim(1) != a.n_groups * cols || rows % a.n_groups != 0) {
    throw Error(ErrorCode::invalid_argument,
                "linear: x has " + std::to_string(a.x.dim(1)) + " columns, and a weight of " +
                    std::to_string(rows) + "x" + std::to_string(cols) + " in " +
                    std::to_string(a.n_groups) + " groups wants " +
                    std::to_string(a.n_groups * cols));
  }
  if (n_tokens == 0 || rows == 0) return;
  HADAL_CHECK(n_tokens <= INT32_MAX);
  Matmul m;
  m.shape = weight_shape(*a.weight);
  m.weight.first = matrix_of(*a.weight);
  MatmulInput x;
  PackedInput packed;
  const Packing packing =
      packing_of(m.shape, a.x.dtype(), a.activation_quant, n_tokens > kMostRowsUnpacked);
  if (packing != Packing::none) {
    packed = pack_input(
        stream,
        {.x = a.x, .n_groups = static_cast<int>(a.n_groups), .n_rows = static_cast<int>(n_tokens)},
        m.shape.format, packing);
    packed.put_into(m);
  } else {
    x = matmul_input(stream, a.x, a.n_groups, a.activation_quant);
    m.x = x.x;
    m.x_f32 = a.x.dtype() == DType::f32;
    m.x_pitch = x.pitch;
    m.x_group_stride = x.group_stride;
  }
  m.n_rows = static_cast<int>(n_tokens);
  m.n_groups = static_cast<int>(a.n_groups);
  m.y = a.y.bytes();
  m.y_f32 = a.y.dtype() == DType::f32;
  m.y_pitch = rows;
  matmul(stream, m);
}

}  // namespace hadal::kernels::cuda
