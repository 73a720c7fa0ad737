#pragma once

#include <span>

#include "kernels/registry.h"

namespace hadal {

// A weight in training, and the form in which a checkpoint holds it.
struct StoredWeight {
  TensorView master;  // f32
  TensorView data;    // its shape, out  bf16 | f32: rounded to bf16 | f8_e4m3 | f4_e2m1
  TensorView scale;   // ue8m0, out: one a kFp8Block or kFp4Block; empty for bf16 and f32
};

struct StoreResult {
  std::int64_t n_lifted = 0;     // FP4 tiles whose scale was raised (Fp4InFp8)
  std::int64_t non_finite = -1;  // flat place of the first NaN or infinity of a weight with scales,
                                 // which is then not stored; -1: there is none
};

// The bytes of to_bf16, quantize_fp8 and quantize_fp4_in_fp8 (core/quant.h), for all weights of a
// model. FP4 takes a multiple of 32 columns.  Source: training.md §3.
struct StoreWeightsArgs {
  std::span<const StoredWeight> weights;
  std::span<StoreResult> results;  // out, one a weight
};
inline constexpr KernelName<StoreWeightsArgs> kStoreWeights{"store_weights"};

}  // namespace hadal
