#include "kernels/rope.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

class CudaRope : public CudaTest {};

// Products and sums are rounded one by one on both sides: equal to the bit.
TEST_F(CudaRope, IsTheCpus) {
  struct Case {
    std::int64_t n_tokens, n_heads, width, n_pairs;
  };
  const Case cases[] = {{0, 4, 64, 32},  {1, 1, 2, 1},     {1, 64, 512, 32}, {3, 5, 70, 32},
                        {7, 1, 128, 32}, {65, 3, 96, 13},  {17, 2, 67, 4},   {130, 64, 512, 32},
                        {2, 1, 64, 32},  {9, 64, 128, 32}, {5, 3, 36, 6}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : cases) {
      for (const RopeDirection direction : {RopeDirection::forward, RopeDirection::inverse}) {
        const Tensor x = random({c.n_tokens, c.n_heads, c.width}, dtype);
        const Tensor table = random({c.n_tokens, c.n_pairs, 2}, DType::f32);
        const Tensor got = to_device(x), on_device = to_device(table);
        run_gpu(kRope, dtype, {.x = got, .table = on_device, .direction = direction});
        run_cpu(kRope, dtype, {.x = x, .table = table, .direction = direction});
        expect_same_bytes(to_host(got), x, "rope of width " + std::to_string(c.width));
      }
    }
  }
}

// The angle is the same f32 on both sides. Cosines in f64 are within 2 units of 2^-53 on both,
// which changes an f32 rounding once in 10^8.
TEST_F(CudaRope, TablesAreTheCpus) {
  for (const std::int64_t n_tokens : {0, 1, 7, 1000}) {
    const Tensor positions = Tensor::empty({n_tokens}, DType::i64);
    for (std::int64_t t = 0; t < n_tokens; ++t) {
      positions.data<std::int64_t>()[t] = t * t + (t % 2) * 900'000;
    }
    const Tensor frequencies = Tensor::empty({32}, DType::f32);
    for (int i = 0; i < 32; ++i) {
      frequencies.data<float>()[i] = static_cast<float>(std::pow(10000.0, -i / 32.0));
    }
    const Tensor want = Tensor::empty({n_tokens, 32, 2}, DType::f32);
    const Tensor got = device_empty(want.shape(), DType::f32);
    const Tensor p = to_device(positions), f = to_device(frequencies);
    run_cpu(kRopeTable, DType::f32,
            {.table = want, .positions = positions, .frequencies = frequencies});
    run_gpu(kRopeTable, DType::f32, {.table = got, .positions = p, .frequencies = f});
    expect_close(to_host(got), want, 1e-8, 1e-9, "rope_table");
  }
}

}  // namespace
}  // namespace hadal::test
