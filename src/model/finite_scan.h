// Looks for values that no healthy weight has.
#pragma once

#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace hadal::model {

// Index of the first NaN or infinity of x in row-major order: any exponent of all ones in f16,
// bf16 and f32, the two NaN codes of f8_e4m3, byte 255 of ue8m0. f4_e2m1 and integers have none.
[[nodiscard]] std::optional<std::int64_t> first_non_finite(const TensorView& x);

}  // namespace hadal::model
