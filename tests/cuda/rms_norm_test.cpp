#include "kernels/rms_norm.h"

#include <cstring>

#include "cuda/support.h"

namespace hadal::test {
namespace {

class CudaRmsNorm : public CudaTest {};

// Rows: none, one, a prime, many. Widths: of a warp a row (up to 1,024) and of a block a row,
// aligned and not, one past a step, and those of the models.
constexpr std::int64_t kRows[] = {0, 1, 7, 64};
constexpr std::int64_t kWidths[] = {1, 8, 127, 512, 1024, 1032, 1537, 4096, 7168};

// Sums of n squares in another order differ by about sqrt(n) roundings, 1e-6 at most. In bf16 that
// changes which way an element rounds now and then: by one unit in the last place, 2^-7 of it.
double tolerance(DType dtype) {
  return dtype == DType::f32 ? 1e-6 : 1e-3;
}

TEST_F(CudaRmsNorm, IsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : kWidths) {
      for (const std::int64_t n_rows : kRows) {
        const Tensor x = random({n_rows, n}, dtype, 3.0f), weight = random({n}, DType::f32);
        const Tensor want = Tensor::empty(x.shape(), dtype);
        run_cpu(kRmsNorm, dtype, {.y = want, .x = x, .weight = weight, .eps = 1e-6f});
        const Tensor got = device_empty(x.shape(), dtype);
        const Tensor dx = to_device(x), dw = to_device(weight);
        run_gpu(kRmsNorm, dtype, {.y = got, .x = dx, .weight = dw, .eps = 1e-6f});
        expect_close(to_host(got), want, tolerance(dtype), 0,
                     "rms_norm of " + std::to_string(n_rows) + " x " + std::to_string(n));
      }
    }
  }
}

// bf16 rounds five times; a sum that falls on the other side of a boundary moves the whole row by a
// unit, which happens to one row in thousands: rows are counted.
TEST_F(CudaRmsNorm, HeadNormRoundsAsTheReference) {
  for (const std::int64_t n : kWidths) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor x = random({65, n}, dtype, 2.0f), want = copy_of(x), got = to_device(x);
      run_cpu(kHeadNorm, dtype, {.x = want, .eps = 1e-6f});
      run_gpu(kHeadNorm, dtype, {.x = got, .eps = 1e-6f});
      const Tensor host = to_host(got);
      expect_close(host, want, dtype == DType::f32 ? 1e-6 : 2e-3, 0,
                   "head_norm of width " + std::to_string(n));
      if (dtype == DType::f32) continue;
      int n_other = 0;
      for (std::int64_t r = 0; r < x.dim(0); ++r) {
        const std::size_t bytes = static_cast<std::size_t>(n) * 2;
        const auto offset = static_cast<std::size_t>(r) * bytes;
        n_other += std::memcmp(host.bytes() + offset, want.bytes() + offset, bytes) != 0 ? 1 : 0;
      }
      EXPECT_LE(n_other, 2) << "rows that differ, of width " << n;
    }
  }
}

TEST_F(CudaRmsNorm, ARowHasItsBitsInAnyBatch) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {512, 513, 4096}) {
      const Tensor x = random({1000, n}, dtype), weight = random({n}, DType::f32);
      const Tensor dx = to_device(x), dw = to_device(weight);
      const Tensor all = device_empty(x.shape(), dtype), heads = to_device(x);
      run_gpu(kRmsNorm, dtype, {.y = all, .x = dx, .weight = dw, .eps = 1e-6f});
      run_gpu(kHeadNorm, dtype, {.x = heads, .eps = 1e-6f});
      for (const std::int64_t row : {0, 1, 63, 999}) {
        const Tensor one = device_empty({1, n}, dtype);
        run_gpu(kRmsNorm, dtype,
                {.y = one, .x = dx.slice(row, row + 1), .weight = dw, .eps = 1e-6f});
        expect_same_bytes(to_host(one), to_host(all.slice(row, row + 1)), "rms_norm");
        const Tensor head = to_device(x.slice(row, row + 1));
        run_gpu(kHeadNorm, dtype, {.x = head, .eps = 1e-6f});
        expect_same_bytes(to_host(head), to_host(heads.slice(row, row + 1)), "head_norm");
      }
    }
  }
}

// dx is a difference of two terms of dy's size: 3e-6 for sums in another order. dweight adds up
// rows in the CPU's chunks and order, of factors that differ in the last place.
TEST_F(CudaRmsNorm, BackwardIsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {1, 8, 127, 512, 1032, 4096}) {
      for (const std::int64_t n_rows : {0, 1, 7, 64, 65, 200}) {
        for (const int wanted : {0, 1, 2, 3}) {  // both; no weight at all; dx alone; dweight alone
          if (wanted != 0 && n_rows != 65) continue;
          const Tensor x = random({n_rows, n}, dtype, 2.0f);
          const Tensor dy = random({n_rows, n}, DType::f32);
          const Tensor weight = wanted == 1 ? Tensor() : random({n}, DType::f32);
          const Tensor dx = wanted == 3 ? Tensor() : Tensor::empty(x.shape(), DType::f32);
          const Tensor dweight = wanted == 0 || wanted == 3 ? random({n}, DType::f32) : Tensor();
          const Tensor got_dx = dx ? device_empty(x.shape(), DType::f32) : Tensor();
          const Tensor got_dweight = to_device(dweight);
          const Tensor on_x = to_device(x), on_dy = to_device(dy), on_weight = to_device(weight);
          run_cpu(kRmsNormBackward, dtype,
                  {.dx = dx, .dweight = dweight, .dy = dy, .x = x, .weight = weight, .eps = 1e-6f});
          run_gpu(kRmsNormBackward, dtype,
                  {.dx = got_dx,
                   .dweight = got_dweight,
                   .dy = on_dy,
                   .x = on_x,
                   .weight = on_weight,
                   .eps = 1e-6f});
          const std::string of = " of " + std::to_string(n_rows) + " x " + std::to_string(n);
          // A row of one column has no gradient: its terms cancel, to their last places.
          if (dx) expect_close(to_host(got_dx), dx, 3e-6, n == 1 ? 1e-3 : 0, "dx" + of);
          if (dweight) expect_close(to_host(got_dweight), dweight, 2e-6, 0, "dweight" + of);
        }
      }
    }
  }
}

}  // namespace
}  // namespace hadal::test
