// Many products of bf16 matrices of different sizes in one launch: what the experts of a mixture
// have. (cublas.h is for one product, or many of one size.) Internal to the CUDA backend.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/device.h"
#include "kernels/cuda/cublas.h"

namespace hadal::kernels::cuda {

// out[m, n] = a[m, k] b[k, n], or the sum of two such products. Row-major; where the call says so
// a is stored as [k, m] and b as [n, k]. Stored rows of a and b start at multiples of 16 bytes and
// are as long; n is even.
struct GroupedProblem {
  struct Pair {
    const void *a = nullptr, *b = nullptr;
  };
  std::array<Pair, 2> pairs;
  std::int32_t n_pairs = 1;
  void* out = nullptr;
  std::int32_t m = 0, n = 0, k = 0;
  std::int32_t lda = 0, ldb = 0, ldc = 0;
};

struct GroupedForm {
  Transposed a = Transposed::no, b = Transposed::no;  // the same for all; not both
  DType result = DType::f32;                          // bf16 | f32
  bool add = false;                                   // to what is in `out`; f32 only
};

// An element is summed over k in order, whatever else there is.
void grouped_gemm(Stream& stream, std::span<const GroupedProblem> problems,
                  const GroupedForm& form);

}  // namespace hadal::kernels::cuda
