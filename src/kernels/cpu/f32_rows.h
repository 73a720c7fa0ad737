// f32 values of activations and weights for gradient kernels, which multiply dense f32 matrices.
#pragma once

#include <vector>

#include "core/quant.h"
#include "core/thread_pool.h"
#include "kernels/activation_quant.h"

namespace hadal::kernels::cpu {

// The values of x [n_rows, cols] as its linear multiplied them: rounded to E4M3 where `quant` says
// so. Borrows x when it is f32 and not rounded, else `buffer`.
[[nodiscard]] const float* f32_rows(ThreadPool& pool, const TensorView& x, ActivationQuant quant,
                                    std::vector<float>& buffer);

// The values of a weight. Borrows it when it is f32, else `buffer`.
[[nodiscard]] const float* f32_rows(ThreadPool& pool, const QuantTensor& w,
                                    std::vector<float>& buffer);

}  // namespace hadal::kernels::cpu
