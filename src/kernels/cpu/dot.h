// Dot products of activations with rows of weights, in every weight format, weights in place:
//
//   y[m, n] = sum over k of x[m, k] * w[n, k], in f32
//
// One output is one fixed chain of operations, whatever is computed beside it: its bits do not
// depend on the number of activation rows, on how rows are split over calls or threads, or on the
// place in a batch. The chain (16 lanes, k upward, one fused multiply-add a lane and step):
//
//   acc[l] = fma(x[k'], w[k'], acc[l])   k' = k'(step, l)
//   then acc[l] += acc[l + 8], += acc[l + 4], += acc[l + 2], += acc[l + 1];  y = acc[0]
//
//   f32, f8_e4m3 weights   k'(step, l) = 16 * step + l
//   bf16, f4_e2m1 weights  in a block of 32 columns the even ones (one step), then the odd ones
//
// Where the columns end inside a step, zeros follow. w[n, k] is element * scale, rounded to f32
// (exact for ue8m0 scales). So it is on every instruction set but avx512_bf16, which multiplies
// pairs of bf16 (32 columns a step, own order, same promises) where both sides are exactly bf16:
// bf16 weights, or f8 and f4 with ue8m0 scales, and activations given in bf16 or rounded to fp8.
// It treats magnitudes below 2^-126 as zero. Everything else takes the f32 chain there, too.
//
// Source: ours; numerics after architecture.md §5, batch invariance after §6.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/dtype.h"
#include "core/quant.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "kernels/activation_quant.h"
#include "kernels/cpu/isa.h"

namespace hadal::kernels::cpu {

// Borrowed weights [rows, cols], rows contiguous, no alignment needed.
//   f32 | bf16             scale is null
//   f8_e4m3                scale [ceil(rows/block.rows), ceil(cols/block.cols)] ue8m0 | f32;
//                          block.cols a multiple of 32; scales below 2^119
//   f4_e2m1                scale [rows, cols/32] ue8m0 | f32; block 1x32, cols a multiple of 32
struct WeightRows {
  DType dtype = DType::f32;
  const std::byte* data = nullptr;
  const std::byte* scale = nullptr;
  DType scale_dtype = DType::ue8m0;
  std::int64_t rows = 0, cols = 0;
  QuantBlock block;
};

// Throw unsupported on a dtype or block that the table above does not have.
[[nodiscard]] WeightRows rows_of(const QuantTensor& w);
[[nodiscard]] WeightRows rows_of(const TensorView& w);  // [rows, cols], f32 | bf16

enum class DotChain : std::uint8_t { f32, bf16 };  // what is multiplied, and a panel's element
enum class ColumnOrder : std::uint8_t { natural, even_odd32, nibbles32, unpack64 };

// Activations rearranged for one weight format and the instruction set that is active when
// prepare runs. Good for every weight of the same dtype, scale dtype, block.cols and cols. The
// buffer grows and never shrinks, so a panel that is kept does not allocate in steady state.
class ActivationPanel {
 public:
  // x [n_rows, cols] f32 | bf16. Throws invalid_argument when x and w disagree on cols.
  void prepare(ThreadPool& pool, const TensorView& x, const WeightRows& w, ActivationQuant quant);
  // Panel row i is x[indices[i]]; every index in [0, x.dim(0)).
  void prepare_gather(ThreadPool& pool, const TensorView& x, std::span<const std::int32_t> indices,
                      const WeightRows& w, ActivationQuant quant);

  [[nodiscard]] std::int64_t n_rows() const { return n_rows_; }
  [[nodiscard]] std::int64_t cols() const { return cols_; }

 private:
  friend void dot_rows(const ActivationPanel&, std::int64_t, std::int64_t, const WeightRows&,
                       std::int64_t, std::int64_t, float*, std::int64_t);
  void expect_format(const WeightRows& w) const;
  void fill(ThreadPool& pool, const TensorView& x, const std::int32_t* indices, std::int64_t n_rows,
            const WeightRows& w, ActivationQuant quant);

  struct FreeAligned {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, FreeAligned> buffer_;  // [n_rows rounded up to 4, stride] elements
  std::size_t capacity_ = 0;                        // bytes
  std::int64_t n_rows_ = 0, cols_ = 0;
  std::int64_t stride_ = 0;  // elements from row to row; zero beyond cols, up to a multiple of 64
  Isa isa_ = Isa::portable;
  DotChain chain_ = DotChain::f32;
  ColumnOrder order_ = ColumnOrder::natural;
  DType w_dtype_ = DType::f32, w_scale_dtype_ = DType::ue8m0;
  std::int64_t w_block_cols_ = 1;
};

// y[m * ldy + (n - n0)] = the dot product of panel row m and weight row n, for all panel rows and
// n in [n0, n1). Runs on the calling thread; split [n0, n1) to use more. Throws invalid_argument
// when the panel was prepared for another format.
void dot_rows(const ActivationPanel& x, const WeightRows& w, std::int64_t n0, std::int64_t n1,
              float* y, std::int64_t ldy);
// The same for panel rows [m0, m1): y[(m - m0) * ldy + (n - n0)].
void dot_rows(const ActivationPanel& x, std::int64_t m0, std::int64_t m1, const WeightRows& w,
              std::int64_t n0, std::int64_t n1, float* y, std::int64_t ldy);

// A number of weight rows worth one call of dot_rows for n_x_rows activation rows: enough work to
// pay for handing it to a thread, few enough that all threads of the pool have some.
[[nodiscard]] std::int64_t dot_grain(const ThreadPool& pool, std::int64_t n_x_rows,
                                     const WeightRows& w);

// y [x.n_rows(), w.rows] with row stride ldy, on all threads of the pool.
void dot_all(ThreadPool& pool, const ActivationPanel& x, const WeightRows& w, float* y,
             std::int64_t ldy);

}  // namespace hadal::kernels::cpu
