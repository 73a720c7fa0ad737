// Rows of elements in groups of 16 bytes, one group a thread and step. Which thread has which
// element depends on the group's size alone: rows that cannot be read 16 bytes at a time are read
// element by element in the same groups, so that sums have the same order.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "kernels/cuda/device/convert.cuh"

namespace hadal::kernels::cuda {

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kGroup = 16 / static_cast<int>(sizeof(T));

template <class T, int kN>
struct alignas(sizeof(T) * kN < 16 ? sizeof(T) * kN : 16) Pack {
  T v[kN];
};

// Elements [at, at + kN) of a row of n, as f32, and zeros beyond its end. kVector: the row begins
// at a multiple of a Pack's alignment, and n and `at` are multiples of kN.
template <bool kVector, int kN, class T>
__device__ __forceinline__ void load_group(float (&x)[kN], const T* row, std::int64_t at,
                                           std::int64_t n) {
  if constexpr (kVector) {
    if (at >= n) {
#pragma unroll
      for (int i = 0; i < kN; ++i) x[i] = 0.0f;
      return;
    }
    const auto pack = *reinterpret_cast<const Pack<T, kN>*>(row + at);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = load(pack.v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] = at + i < n ? load(row[at + i]) : 0.0f;
  }
}

// The same elements of a row, written; nothing beyond its end.
template <bool kVector, int kN, class T>
__device__ __forceinline__ void put_group(T* row, std::int64_t at, std::int64_t n,
                                          const float (&x)[kN]) {
  if constexpr (kVector) {
    if (at >= n) return;
    Pack<T, kN> pack;
#pragma unroll
    for (int i = 0; i < kN; ++i) put(pack.v[i], x[i]);
    *reinterpret_cast<Pack<T, kN>*>(row + at) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if (at + i < n) put(row[at + i], x[i]);
    }
  }
}

// Whether rows of n elements of these tensors may be read in groups of kN with kVector.
template <class... Views>
[[nodiscard]] bool in_groups(std::int64_t n, int group, const Views&... views) {
  const auto aligned = [&](const TensorView& x) {
    const std::int64_t bytes = std::int64_t{group} * bits(x.dtype()) / 8;
    return reinterpret_cast<std::uintptr_t>(x.bytes()) %
               static_cast<std::uintptr_t>(bytes < 16 ? bytes : 16) ==
           0;
  };
  return n % group == 0 && (aligned(views) && ...);
}

// Runs fn<true> or fn<false>, for kernels that take kVector.
template <class Fn>
void dispatch_bool(bool value, Fn&& fn) {
  if (value) {
    fn.template operator()<true>();
  } else {
    fn.template operator()<false>();
  }
}

}  // namespace hadal::kernels::cuda
