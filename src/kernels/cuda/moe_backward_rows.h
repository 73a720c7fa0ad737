// What the backward pass of experts does to rows between its products. Internal to the CUDA
// backend.
#pragma once

#include "core/device.h"

namespace hadal::kernels::cuda {

// Of the rows of some sorted assignments (device/gradient_rows.cuh).
struct SwigluRows {
  const std::int32_t* assignment;  // null: weight 1 and no gradient of it
  const float* weights;
  float* dweights;  // null: not wanted
  std::int64_t n_rows;
  int width;
  float limit;  // 0: none
};
inline constexpr int kMaxGradientTopk = 128;

// xs, dys [n_rows, hidden] of one type: x and dy of each row's token, zeros in the padding.
void gather_expert_rows(Stream& stream, const TensorView& xs, const TensorView& dys,
                        const TensorView& x, const TensorView& dy, const std::int32_t* assignment,
                        std::int64_t topk);

// From gate, up and the gradient `mid` of the hidden row, in place: gate and up become their own
// gradients, mid the hidden row that forward multiplied with down_proj, with the roundings of
// `activation`. All three [n_rows, width] of one type.
void swiglu_backward(Stream& stream, const TensorView& gate, const TensorView& up,
                     const TensorView& mid, DType activation, const SwigluRows& rows);

// Adds rows [row0, row0 + n_rows) of all sorted rows, which dxs holds, to the dx of their tokens,
// rows ascending; `first` overwrites what dx has.
void scatter_expert_rows(Stream& stream, const TensorView& dx, const float* dxs,
                         const TensorView& row_of, std::int64_t row0, std::int64_t n_rows,
                         std::int64_t topk, bool first);

}  // namespace hadal::kernels::cuda
