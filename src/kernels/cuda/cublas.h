// The one door to cuBLASLt: dense products of row-major matrices on tensor cores. The library is
// opened at first use, so that the program starts without it. Internal to the CUDA backend.
#pragma once

#include <cstdint>

#include "core/device.h"

namespace hadal::kernels::cuda {

enum class Transposed : std::uint8_t { no, yes };

// out[m, n] = alpha * op(a)[m, k] * op(b)[k, n] + beta * addend, for every matrix of a batch,
// summed in f32. Leading dimensions and batch strides in elements. bf16 operands meet on tensor
// cores; f32 operands are multiplied in true f32, never in TF32.
struct Gemm {
  struct Matrix {
    void* data = nullptr;
    std::int64_t ld = 0;
    std::int64_t batch_stride = 0;
    Transposed transposed = Transposed::no;  // stored as [cols, rows]
  };
  Matrix out, a, b;
  const void* addend = nullptr;  // laid out like `out`; null: what is in `out`. Unread if beta is 0
  std::int64_t m = 0, n = 0, k = 0, n_batch = 1;
  DType operands = DType::bf16;  // of a and b: bf16 | f32
  DType result = DType::f32;     // of out and addend: bf16 (bf16 operands only) | f32
  float alpha = 1.0f, beta = 0.0f;
  // A matrix gets the same bits alone as in any batch: costs the splits of k that would fill the
  // GPU when there are few.
  bool any_batch = false;
};

// The same shapes and strides give the same bits on every call. Nothing to do when m, n or the
// batch is empty; k must not be.
// Throws Error device when cuBLASLt is not installed, saying what to install, or when it refuses.
void gemm(Stream& stream, const Gemm& gemm);

// Whether bf16 matrices of these row lengths can meet on tensor cores at speed: rows start at
// multiples of 16 bytes.
[[nodiscard]] constexpr bool suits_tensor_cores(std::int64_t cols) {
  return cols % 8 == 0;
}

}  // namespace hadal::kernels::cuda
