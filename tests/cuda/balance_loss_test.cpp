#include "cuda/support.h"
#include "kernels/moe.h"

namespace hadal::test {
namespace {

class CudaBalanceLoss : public CudaTest {
 protected:
  // Losses add up shares in f64 on both sides; shares are f32 sums over 128 tokens in one order, of
  // scores within a few units in the last place: 1e-6. Loads minus their mean cancel: 1e-5.
  void expect_cpus(const std::vector<std::int64_t>& bounds, std::int64_t n_experts,
                   std::int64_t topk, bool gradient) {
    const std::int64_t n_tokens = bounds.back();
    const auto n_sequences = static_cast<std::int64_t>(bounds.size()) - 1;
    const Tensor logits = random({n_tokens, n_experts}, DType::f32, 3.0f);
    const Tensor experts = random_ids({n_tokens, topk}, static_cast<std::int32_t>(n_experts));
    const Tensor want = Tensor::empty({n_sequences}, DType::f32);
    const Tensor dwant = gradient ? Tensor::empty(logits.shape(), DType::f32) : Tensor();
    run_cpu(kBalanceLoss, DType::f32,
            {.loss = want,
             .dlogits = dwant,
             .logits = logits,
             .experts = experts,
             .bounds = bounds,
             .coefficient = 0.25f});
    const Tensor got = device_empty(want.shape(), DType::f32);
    const Tensor dgot = gradient ? device_empty(logits.shape(), DType::f32) : Tensor();
    const Tensor on_logits = to_device(logits), on_experts = to_device(experts);
    run_gpu(kBalanceLoss, DType::f32,
            {.loss = got,
             .dlogits = dgot,
             .logits = on_logits,
             .experts = on_experts,
             .bounds = bounds,
             .coefficient = 0.25f});
    expect_close(to_host(got), want, 1e-6, 0, "loss");
    if (gradient) expect_close(to_host(dgot), dwant, 1e-5, 1e-9, "dlogits");
  }
};

TEST_F(CudaBalanceLoss, IsTheCpus) {
  expect_cpus({0, 0}, 16, 2, true);
  expect_cpus({0, 1}, 256, 6, true);
  expect_cpus({0, 128}, 256, 6, true);
  expect_cpus({0, 129, 129, 136}, 384, 6, true);  // one past a range, and nothing
  expect_cpus({0, 37, 500, 501}, 40, 3, true);
  expect_cpus({0, 1000}, 7, 2, true);
  expect_cpus({0, 300}, 256, 6, false);
}

}  // namespace
}  // namespace hadal::test
