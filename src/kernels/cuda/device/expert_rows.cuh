// Which rows each expert works on.
#pragma once

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

// Assignments (token, slot) sorted by expert, tokens ascending inside an expert, in device memory
// that `memory` keeps.
struct ExpertRows {
  Tensor memory;
  const std::int32_t* token = nullptr;       // [n_assignments]
  const float* weight = nullptr;             // [n_assignments]
  const std::int32_t* row_of = nullptr;      // [n_tokens * topk] row of an assignment
  const std::int32_t* expert_row = nullptr;  // [n_experts + 1] first row of each expert
  // The rows in tiles of one expert, at most tile_rows each; how many there are is known on the
  // device only.
  const TokenTile* tiles = nullptr;
  const std::int32_t* n_tiles = nullptr;
  int max_tiles = 0;
  int tile_rows = 0;
};

// experts [n_tokens, topk] i32, weights [n_tokens, topk] f32. The device stops with an error when
// an expert is outside [0, n_experts). Throws unsupported on more experts than shared memory holds.
[[nodiscard]] ExpertRows sort_by_expert(Stream& stream, const TensorView& experts,
                                        const TensorView& weights, std::int64_t n_experts,
                                        int tile_rows);

}  // namespace hadal::kernels::cuda
