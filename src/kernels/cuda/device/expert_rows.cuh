// Which rows each expert works on.
#pragma once

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/matmul.cuh"

namespace hadal::kernels::cuda {

// Assignments (token, slot) sorted by expert, tokens ascending inside an expert, in device memory
// that `memory` keeps. Experts begin at rows that are multiples of kNarrowRows, so there are rows
// of nobody between them: token -1.
struct ExpertRows {
  Tensor memory;
  const std::int32_t* token = nullptr;       // [max_rows]
  const float* weight = nullptr;             // [max_rows]
  const std::int32_t* row_of = nullptr;      // [n_tokens * topk] row of an assignment
  const std::int32_t* expert_row = nullptr;  // [n_experts + 1] first row of each, how many rows
  // How many rows there are, and how many tiles, is known on the device only. The rows of an expert
  // are in as few tiles of at most tile_rows as can be, of nearly equal sizes.
  int max_rows = 0;
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
