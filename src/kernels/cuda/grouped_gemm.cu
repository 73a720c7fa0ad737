// One block a tile of 128 x 128 results, eight warps of 64 x 32 each; k in steps of 32, four of
// them on their way from memory at a time. Tiles of all problems are one list.
#include "kernels/cuda/grouped_gemm.h"

#include <vector>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128, kStep = 32, kStages = 4;
// Rows of shared memory, with 16 bytes more than they hold, so that eight of them have no bank in
// common.
constexpr int kStepPitch = kStep + 8, kTilePitch = kTile + 8;
constexpr int kOperand = kTile * kStepPitch;  // elements; more than kStep * kTilePitch
constexpr int kSharedBytes = kStages * 2 * kOperand * 2;

struct Tile {
  std::int32_t problem, m0, n0;
};

// 16 bytes, or zeros in their place.
__device__ __forceinline__ void copy_or_zero(__nv_bfloat16* to, const __nv_bfloat16* from,
                                             bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

// `wide` rows are [kTile][kStep] of a matrix [n_outer, k], the others [kStep][kTile] of [k,
// n_outer].
template <bool kWide>
__device__ __forceinline__ void load_operand(__nv_bfloat16* to, const __nv_bfloat16* from, int ld,
                                             int outer0, int n_outer, int k0, int k) {
  constexpr int kRowPieces = (kWide ? kStep : kTile) / 8;
#pragma unroll
  for (int j = 0; j < kTile * kStep / 8 / kThreads; ++j) {
    const int piece = static_cast<int>(threadIdx.x) + j * kThreads;
    const int row = piece / kRowPieces, c = piece % kRowPieces * 8;
    const int outer = outer0 + (kWide ? row : c), inner = k0 + (kWide ? c : row);
    const bool inside = outer < n_outer && inner < k;
    const std::int64_t at =
        kWide ? std::int64_t{outer} * ld + inner : std::int64_t{inner} * ld + outer;
    copy_or_zero(to + row * (kWide ? kStepPitch : kTilePitch) + c, from + (inside ? at : 0),
                 inside);
  }
}

template <bool kATransposed, bool kBTransposed>
__device__ __forceinline__ void multiply(float (&sums)[4][4][4], const __nv_bfloat16* a,
                                         const __nv_bfloat16* b) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / 4 * 64, n0 = warp % 4 * 32;
#pragma unroll
  for (int k = 0; k < kStep; k += 16) {
    std::uint32_t left[4][4], right[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kATransposed) {
        load_matrices_transposed(left[i], a + (k + lane / 16 * 8 + lane % 8) * kTilePitch + m0 +
                                              16 * i + lane / 8 % 2 * 8);
      } else {
        load_matrices(left[i], a + (m0 + 16 * i + lane % 16) * kStepPitch + k + lane / 16 * 8);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if constexpr (kBTransposed) {
        load_matrices(right[j], b + (n0 + 16 * j + lane / 16 * 8 + lane % 8) * kStepPitch + k +
                                    lane / 8 % 2 * 8);
      } else {
        load_matrices_transposed(right[j], b + (k + lane / 8 % 2 * 8 + lane % 8) * kTilePitch + n0 +
                                               16 * j + lane / 16 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mma_16816(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

template <class Out>
__device__ __forceinline__ void store(const GroupedProblem& p, const Tile& tile, bool add,
                                      const float (&sums)[4][4][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = tile.m0 + warp / 4 * 64 + 16 * i + lane / 4 + 8 * half;
      if (m >= p.m) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = tile.n0 + warp % 4 * 32 + 8 * j + lane % 4 * 2;
        if (n >= p.n) continue;
        Out* const at = static_cast<Out*>(p.out) + std::int64_t{m} * p.ldc + n;
        const float x = sums[i][j][2 * half], y = sums[i][j][2 * half + 1];
        if constexpr (sizeof(Out) == 4) {
          const float2 before = add ? *reinterpret_cast<const float2*>(at) : float2{};
          *reinterpret_cast<float2*>(at) = {before.x + x, before.y + y};
        } else {
          *reinterpret_cast<__nv_bfloat162*>(at) = __floats2bfloat162_rn(x, y);
        }
      }
    }
  }
}

template <bool kATransposed, bool kBTransposed, class Out>
__global__ void __launch_bounds__(kThreads, 2)
    grouped_gemm_kernel(const GroupedProblem* problems, const Tile* tiles, bool add) {
  extern __shared__ __align__(16) __nv_bfloat16 stages[];
  const Tile tile = tiles[blockIdx.x];
  const GroupedProblem& p = problems[tile.problem];
  const int per_pair = (p.k + kStep - 1) / kStep, n_steps = p.n_pairs * per_pair;
  const auto fetch = [&](int step) {
    if (step < n_steps) {
      const GroupedProblem::Pair pair = step < per_pair ? p.pairs[0] : p.pairs[1];
      const int k0 = (step < per_pair ? step : step - per_pair) * kStep;
      __nv_bfloat16* const at = stages + step % kStages * 2 * kOperand;
      load_operand<!kATransposed>(at, static_cast<const __nv_bfloat16*>(pair.a), p.lda, tile.m0,
                                  p.m, k0, p.k);
      load_operand<kBTransposed>(at + kOperand, static_cast<const __nv_bfloat16*>(pair.b), p.ldb,
                                 tile.n0, p.n, k0, p.k);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sums[4][4][4] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  for (int step = 0; step < n_steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // this step is there, and nobody reads the stage before it any more
    fetch(step + kStages - 1);
    const __nv_bfloat16* const at = stages + step % kStages * 2 * kOperand;
    multiply<kATransposed, kBTransposed>(sums, at, at + kOperand);
  }
  store<Out>(p, tile, add, sums);
}

template <bool kATransposed, bool kBTransposed>
void run(Stream& stream, std::span<const GroupedProblem> problems, std::span<const Tile> tiles,
         const GroupedForm& form) {
  const GroupedProblem* staged = stream.cuda().stage(problems);
  const Tile* list = stream.cuda().stage(tiles);
  const Grid grid{dim3(static_cast<unsigned>(tiles.size())), dim3(kThreads), kSharedBytes};
  dispatch_activation(form.result, [&]<class Out>() {
    launch(stream, "grouped_gemm", grouped_gemm_kernel<kATransposed, kBTransposed, Out>, grid,
           staged, list, form.add);
  });
}

}  // namespace

void grouped_gemm(Stream& stream, std::span<const GroupedProblem> problems,
                  const GroupedForm& form) {
  std::vector<Tile> tiles;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const GroupedProblem& p = problems[i];
    for (const GroupedProblem::Pair& pair : p.pairs) {
      HADAL_CHECK(reinterpret_cast<std::uintptr_t>(pair.a) % 16 == 0 &&
                  reinterpret_cast<std::uintptr_t>(pair.b) % 16 == 0);
    }
    HADAL_CHECK(p.lda % 8 == 0 && p.ldb % 8 == 0 && p.ldc % 2 == 0);
    // What lies along rows comes in pieces of eight.
    HADAL_CHECK((form.a == Transposed::yes ? p.m : p.k) % 8 == 0);
    HADAL_CHECK((form.b == Transposed::yes ? p.k : p.n) % 8 == 0 && p.n % 2 == 0);
    for (std::int32_t m = 0; m < p.m; m += kTile) {
      for (std::int32_t n = 0; n < p.n; n += kTile) {
        tiles.push_back({static_cast<std::int32_t>(i), m, n});
      }
    }
  }
  if (tiles.empty()) return;
  HADAL_CHECK(!form.add || form.result == DType::f32);
  const bool a = form.a == Transposed::yes, b = form.b == Transposed::yes;
  HADAL_CHECK(!(a && b));
  if (a) {
    run<true, false>(stream, problems, tiles, form);
  } else if (b) {
    run<false, true>(stream, problems, tiles, form);
  } else {
    run<false, false>(stream, problems, tiles, form);
  }
}

}  // namespace hadal::kernels::cuda
