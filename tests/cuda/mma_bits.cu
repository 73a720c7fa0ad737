#include "cuda/mma_bits.h"

#include <cuda_runtime.h>

#include "kernels/cuda/device/matmul_fragment.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace hadal::test {

namespace {

using namespace kernels::cuda;

constexpr int kThreads = 128;

// Four words of A for step k of 32 bytes, and two of B, from plain rows of kRowBytes.
template <int kRowBytes>
__device__ void fragment_a(std::uint32_t (&a)[4], const std::byte* from, int row, int k, int t) {
  for (int i = 0; i < 4; ++i) {
    a[i] = *reinterpret_cast<const std::uint32_t*>(from + (row + i % 2 * 8) * kRowBytes + k * 32 +
                                                   i / 2 * 16 + t * 4);
  }
}

template <bool kE4m3>
__global__ void mma_sync_kernel(float* sums, const std::byte* a, const std::byte* b) {
  constexpr int kRowBytes = kBitsCols * (kE4m3 ? 1 : 2);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int n0 = 0; n0 < kBitsTokens; n0 += 8) {
    float d[4] = {};
    for (int k = 0; k < kRowBytes / 32; ++k) {
      std::uint32_t fa[4], fb[2];
      fragment_a<kRowBytes>(fa, a, 16 * warp + g, k, t);
      for (int i = 0; i < 2; ++i) {
        fb[i] = *reinterpret_cast<const std::uint32_t*>(b + (n0 + g) * kRowBytes + k * 32 + i * 16 +
                                                        t * 4);
      }
      if constexpr (kE4m3) {
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
      } else {
        mma_bf16(d, fa, fb[0], fb[1]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      sums[(16 * warp + g + i / 2 * 8) * kBitsTokens + n0 + 2 * t + i % 2] = d[i];
    }
  }
}

template <bool kE4m3, int kN, bool kRegisters>
__global__ void wgmma_kernel(float* sums, const std::byte* a, const std::byte* b) {
  constexpr int kRowBytes = kBitsCols * (kE4m3 ? 1 : 2), kHalves = kRowBytes / 128;
  extern __shared__ __align__(1024) std::byte shared[];
  std::byte* const sa = shared;
  std::byte* const sb = shared + kBitsRows * kRowBytes;
  const auto fill = [&](std::byte* to, const std::byte* from, int rows) {
    for (int i = threadIdx.x; i < rows * kRowBytes / 16; i += kThreads) {
      const int r = i / (kRowBytes / 16), c = i % (kRowBytes / 16);
      *reinterpret_cast<uint4*>(to + c / 8 * rows * 128 + wgmma_swizzle(r, c % 8)) =
          *reinterpret_cast<const uint4*>(from + r * kRowBytes + c * 16);
    }
  };
  fill(sa, a, kBitsRows);
  fill(sb, b, kN);
  fence_shared_for_async();
  __syncthreads();
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto address = [](const std::byte* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  };
  std::uint32_t fa[4 * kHalves][4];
#pragma unroll
  for (int k = 0; k < 4 * kHalves; ++k) {
    fragment_a<kRowBytes>(fa[k], a, 16 * warp + g, k, t);
  }
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 1e30f;  // the first product overwrites it
  wgmma_arrive();
#pragma unroll
  for (int k = 0; k < 4 * kHalves; ++k) {
    const std::uint64_t rows_a = wgmma_rows(address(sa) + k / 4 * kBitsRows * 128) + 2 * (k % 4);
    const std::uint64_t rows_b = wgmma_rows(address(sb) + k / 4 * kN * 128) + 2 * (k % 4);
    if constexpr (kE4m3) {
      if constexpr (kRegisters)
        Wgmma<kN>::e4m3(d, fa[k], rows_b, k > 0);
      else
        Wgmma<kN>::e4m3(d, rows_a, rows_b, k > 0);
    } else {
      if constexpr (kRegisters)
        Wgmma<kN>::bf16(d, fa[k], rows_b, k > 0);
      else
        Wgmma<kN>::bf16(d, rows_a, rows_b, k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    sums[(16 * warp + g + i / 2 % 2 * 8) * kBitsTokens + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}

template <bool kE4m3>
std::vector<BitsVariant> multiply_as(cuda::Queue& queue, const void* a, const void* b) {
  constexpr int kBytes = kBitsCols * (kE4m3 ? 1 : 2);
  const Tensor da = queue.scratch(kBitsRows * kBytes), db = queue.scratch(kBitsTokens * kBytes);
  const Tensor sums = queue.memory().empty({kBitsRows, kBitsTokens}, DType::f32);
  queue.upload(a, da.bytes(), da.nbytes());
  queue.upload(b, db.bytes(), db.nbytes());
  const auto stream = static_cast<cudaStream_t>(queue.stream());
  std::vector<BitsVariant> variants;
  const auto add = [&](const char* name, int n, auto kernel, int shared_bytes) {
    queue.zero(sums.bytes(), sums.nbytes());
    if (shared_bytes > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
    kernel<<<1, kThreads, static_cast<unsigned>(shared_bytes), stream>>>(sums.data<float>(),
                                                                         da.bytes(), db.bytes());
    check_launch(name);
    variants.push_back({name, n, std::vector<float>(kBitsRows * kBitsTokens)});
    queue.download(sums.bytes(), variants.back().sums.data(), sums.nbytes());
  };
  const auto shared = [](int n) { return (kBitsRows + n) * kBytes; };
  add("mma.sync", kBitsTokens, mma_sync_kernel<kE4m3>, 0);
  add("wgmma n8", 8, wgmma_kernel<kE4m3, 8, false>, shared(8));
  add("wgmma n64", 64, wgmma_kernel<kE4m3, 64, false>, shared(64));
  add("wgmma n128", 128, wgmma_kernel<kE4m3, 128, false>, shared(128));
  add("wgmma n256", 256, wgmma_kernel<kE4m3, 256, false>, shared(256));
  add("wgmma n8, A in registers", 8, wgmma_kernel<kE4m3, 8, true>, shared(8));
  add("wgmma n128, A in registers", 128, wgmma_kernel<kE4m3, 128, true>, shared(128));
  return variants;
}

}  // namespace

std::vector<BitsVariant> multiply_in_every_way(cuda::Queue& queue, const void* a, const void* b,
                                               bool e4m3) {
  return e4m3 ? multiply_as<true>(queue, a, b) : multiply_as<false>(queue, a, b);
}

}  // namespace hadal::test
