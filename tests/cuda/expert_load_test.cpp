#include "cuda/support.h"
#include "kernels/moe.h"

namespace hadal::test {
namespace {

class CudaExpertLoad : public CudaTest {};

// None, one, one past a block's part, many; few experts and as many as V4-Pro has; and everybody at
// one expert's door. What was counted before stays.
TEST_F(CudaExpertLoad, CountsAsTheCpu) {
  for (const std::int32_t n_experts : {1, 5, 384, 12288}) {
    for (const std::int64_t n : {0, 1, 4096, 4097, 100'003}) {
      for (const bool crowded : {false, true}) {
        const Tensor experts = random_ids({n, 1}, crowded ? 1 : n_experts);
        const Tensor want = Tensor::zeros({n_experts}, DType::i64);
        want.data<std::int64_t>()[0] = 7;
        const Tensor got = to_device(want), on_device = to_device(experts);
        run_cpu(kExpertLoad, DType::f32, {.load = want, .experts = experts});
        run_gpu(kExpertLoad, DType::f32, {.load = got, .experts = on_device});
        expect_same_bytes(to_host(got), want,
                          std::to_string(n) + " of " + std::to_string(n_experts));
      }
    }
  }
}

}  // namespace
}  // namespace hadal::test
