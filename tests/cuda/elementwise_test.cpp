#include "kernels/elementwise.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

class CudaElementwise : public CudaTest {};

// One rounding of the same f32 sum on both sides: equal to the bit.
TEST_F(CudaElementwise, AddsToStreams) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [n_tokens, hidden] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {0, 129}, {1, 129}, {7, 129}, {65, 129}, {1, 4096}, {65, 136}}) {
      const Tensor streams = random({n_tokens, 4, hidden}, dtype);
      const Tensor x = random({n_tokens, hidden}, dtype);
      const Tensor want = Tensor::empty(streams.shape(), dtype);
      run_cpu(kAddToStreams, dtype, {.y = want, .streams = streams, .x = x});
      const Tensor got = device_empty(streams.shape(), dtype);
      const Tensor a = to_device(streams), b = to_device(x);
      run_gpu(kAddToStreams, dtype, {.y = got, .streams = a, .x = b});
      expect_same_bytes(to_host(got), want, "add_to_streams");
    }
  }
}

TEST_F(CudaElementwise, ScalesAndCopies) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {0, 1001, 1024}) {  // in groups of 16 bytes, or not
      const Tensor x = random({3, n}, dtype), want = Tensor::empty(x.shape(), dtype);
      run_cpu(kScale, dtype, {.y = want, .x = x, .factor = 0.3f});
      const Tensor from = to_device(x), got = device_empty(x.shape(), dtype);
      run_gpu(kScale, dtype, {.y = got, .x = from, .factor = 0.3f});
      expect_same_bytes(to_host(got), want, "scale");
      run_gpu(kCopy, dtype, {.y = got, .x = from});
      expect_same_bytes(to_host(got), x, "copy");
    }
  }
}

TEST_F(CudaElementwise, SumsStreamsAndAddsInPlace) {
  for (const std::int64_t hidden : {257, 256}) {
    const Tensor y = random({13, 4, hidden}, DType::f32);
    const Tensor want = Tensor::empty({13, hidden}, DType::f32);
    run_cpu(kSumStreams, DType::f32, {.x = want, .y = y});
    const Tensor from = to_device(y), got = device_empty({13, hidden}, DType::f32);
    run_gpu(kSumStreams, DType::f32, {.x = got, .y = from});
    expect_same_bytes(to_host(got), want, "sum_streams");
    run_cpu(kAddInPlace, DType::f32, {.y = want, .x = copy_of(want)});
    run_gpu(kAddInPlace, DType::f32, {.y = got, .x = to_device(to_host(got))});
    expect_same_bytes(to_host(got), want, "add_in_place");
  }
}

}  // namespace
}  // namespace hadal::test
