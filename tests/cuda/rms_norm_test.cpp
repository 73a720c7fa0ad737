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

}  // namespace
}  // namespace hadal::test
