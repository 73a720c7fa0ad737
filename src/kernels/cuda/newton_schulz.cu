// Every step is three batched products in bf16 with f32 sums, as Muon was published with: gram =
// X X', factor = b gram + c gram^2, X <- factor X + a X; the sums are in the products' last stage,
// so that nothing else reads or writes between them. Rows and columns are padded with zeros to
// multiples of 16, which they stay.
//
// What bf16 costs: singular values that f32 puts at 1 end within 0.5 % of it, and directions whose
// singular value lies below 1e-3 of the largest carry rounding noise (DeepSeek-V4 §3.4.1 trains
// so).
#include "kernels/newton_schulz.h"

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPad = 16;

struct Sizes {
  std::int64_t n, rows, cols, padded_rows, padded_cols;
};

__global__ void __launch_bounds__(kThreads) pack_kernel(__nv_bfloat16* y, const float* x, Sizes s) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= s.n * s.padded_rows * s.padded_cols) return;
  const std::int64_t col = i % s.padded_cols, row = i / s.padded_cols % s.padded_rows;
  const std::int64_t matrix = i / s.padded_cols / s.padded_rows;
  const bool inside = row < s.rows && col < s.cols;
  put(y[i], inside ? x[(matrix * s.rows + row) * s.cols + col] : 0.0f);
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(float* x, const __nv_bfloat16* y, Sizes s) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= s.n * s.rows * s.cols) return;
  const std::int64_t col = i % s.cols, row = i / s.cols % s.rows, matrix = i / s.cols / s.rows;
  x[i] = load(y[(matrix * s.padded_rows + row) * s.padded_cols + col]);
}

}  // namespace

void newton_schulz(Stream& stream, const NewtonSchulzArgs& a) {
  HADAL_CHECK(a.x.shape().rank() == 3 && a.x.dim(1) <= a.x.dim(2));
  const std::int64_t n = a.x.dim(0), rows = a.x.dim(1), cols = a.x.dim(2);
  if (n == 0 || rows == 0) return;
  const Sizes s{n, rows, cols, ceil_div(rows, kPad) * kPad, ceil_div(cols, kPad) * kPad};
  const std::int64_t square = s.padded_rows * s.padded_rows;
  const std::int64_t size = s.padded_rows * s.padded_cols;
  // Two of X, two squares. The caller's workspace is for f32, so it holds them unless the padding
  // is most of a matrix.
  const std::int64_t n_bytes = 2 * 2 * n * (size + square);
  Tensor own;
  std::byte* memory = a.workspace.bytes();
  if (static_cast<std::int64_t>(a.workspace.nbytes()) < n_bytes) {
    own = stream.cuda().scratch(n_bytes);
    memory = own.bytes();
  }
  auto* x = reinterpret_cast<__nv_bfloat16*>(memory);
  auto* next = x + n * size;
  auto* gram = next + n * size;
  auto* factor = gram + n * square;
  launch(stream, "newton_schulz pack", pack_kernel,
         {dim3(blocks_for(n * size, kThreads)), dim3(kThreads)}, x, data<const float>(a.x), s);
  const std::int64_t r = s.padded_rows, c = s.padded_cols;
  const auto matrix = [](void* at, std::int64_t ld, std::int64_t stride) {
    return Gemm::Matrix{.data = at, .ld = ld, .batch_stride = stride};
  };
  for (const NewtonSchulzStep& step : a.schedule) {
    Gemm::Matrix transposed = matrix(x, c, size);
    transposed.transposed = Transposed::yes;
    gemm(stream, {.out = matrix(gram, r, square),
                  .a = matrix(x, c, size),
                  .b = transposed,
                  .m = r,
                  .n = r,
                  .k = c,
                  .n_batch = n,
                  .result = DType::bf16,
                  .any_batch = true});
    gemm(stream, {.out = matrix(factor, r, square),
                  .a = matrix(gram, r, square),
                  .b = matrix(gram, r, square),
                  .addend = gram,
                  .m = r,
                  .n = r,
                  .k = r,
                  .n_batch = n,
                  .result = DType::bf16,
                  .alpha = step.c,
                  .beta = step.b,
                  .any_batch = true});
    gemm(stream, {.out = matrix(next, c, size),
                  .a = matrix(factor, r, square),
                  .b = matrix(x, c, size),
                  .addend = x,
                  .m = r,
                  .n = c,
                  .k = r,
                  .n_batch = n,
                  .result = DType::bf16,
                  .beta = step.a,
                  .any_batch = true});
    std::swap(x, next);
  }
  launch(stream, "newton_schulz unpack", unpack_kernel,
         {dim3(blocks_for(n * rows * cols, kThreads)), dim3(kThreads)}, data<float>(a.x), x, s);
}

}  // namespace hadal::kernels::cuda
