#include <array>

#include "cuda/support.h"
#include "kernels/moe.h"

namespace hadal::test {
namespace {

constexpr std::int64_t kVocab = 11;

class CudaMoeRoute : public CudaTest {
 protected:
  enum class Choice { score, table, forced };
  struct Routes {
    Tensor experts, weights;
  };
  struct Inputs {
    Tensor logits, bias, ids, table, forced;
  };
  Inputs inputs(std::int64_t n_tokens, std::int64_t n_experts, std::int64_t topk) {
    return {random({n_tokens, n_experts}, DType::f32, 4.0f), random({n_experts}, DType::f32, 0.1f),
            random_ids({n_tokens}, kVocab),
            random_ids({kVocab, topk}, static_cast<std::int32_t>(n_experts)),
            random_ids({n_tokens, topk}, static_cast<std::int32_t>(n_experts))};
  }
  static MoeRouteArgs args(const Routes& r, const Inputs& in, Choice choice) {
    MoeRouteArgs a{.experts = r.experts,
                   .weights = r.weights,
                   .logits = in.logits,
                   .bias = in.bias,
                   .token_ids = {},
                   .expert_table = {},
                   .forced = {},
                   .routed_scaling_factor = 1.5f};
    if (choice == Choice::table) a.token_ids = in.ids, a.expert_table = in.table;
    if (choice == Choice::forced) a.forced = in.forced;
    return a;
  }
  Routes on_cpu(const Inputs& in, std::int64_t topk, Choice choice) {
    const Routes r{Tensor::empty({in.logits.dim(0), topk}, DType::i32),
                   Tensor::empty({in.logits.dim(0), topk}, DType::f32)};
    run_cpu(kMoeRoute, DType::f32, args(r, in, choice));
    return r;
  }
  Routes on_gpu(const Inputs& in, std::int64_t topk, Choice choice) {
    const Inputs d{to_device(in.logits), to_device(in.bias), to_device(in.ids), to_device(in.table),
                   to_device(in.forced)};
    const Routes r{device_empty({in.logits.dim(0), topk}, DType::i32),
                   device_empty({in.logits.dim(0), topk}, DType::f32)};
    run_gpu(kMoeRoute, DType::f32, args(r, d, choice));
    return {to_host(r.experts), to_host(r.weights)};
  }
};

// Scores are within a few units in the last place of the CPU's: experts whose scores are that near
// each other could change places, which happens to one token in a hundred thousand; these have
// none. Weights are quotients of scores: 1e-6.
TEST_F(CudaMoeRoute, IsTheCpus) {
  struct Case {
    std::int64_t n_tokens, n_experts, topk;
  };
  for (const Case& c :
       {Case{0, 16, 2}, Case{1, 1, 1}, Case{1, 256, 6}, Case{3, 384, 6}, Case{7, 37, 5},
        Case{130, 256, 6}, Case{5, 40, 40}, Case{33, 8, 2}, Case{2, 1000, 33}}) {
    const Inputs in = inputs(c.n_tokens, c.n_experts, c.topk);
    for (const Choice choice : {Choice::score, Choice::table, Choice::forced}) {
      const Routes want = on_cpu(in, c.topk, choice), got = on_gpu(in, c.topk, choice);
      const std::string of = " of " + std::to_string(c.n_tokens) + " tokens, " +
                             std::to_string(c.n_experts) + " experts";
      expect_same_bytes(got.experts, want.experts, "experts" + of);
      expect_close(got.weights, want.weights, 1e-6, 0, "weights" + of);
    }
  }
}

TEST_F(CudaMoeRoute, TiesGoToTheLowerExpert) {
  Inputs in = inputs(4, 256, 6);
  for (std::int64_t i = 0; i < in.logits.numel(); ++i) in.logits.data<float>()[i] = 0.5f;
  for (int e = 0; e < 256; ++e) in.bias.data<float>()[e] = 0.0f;
  in.logits.data<float>()[256 + 200] = 9.0f;  // token 1: one above the ties
  for (const int e : {31, 63, 64, 255}) in.logits.data<float>()[2 * 256 + e] = 2.0f;
  const Routes got = on_gpu(in, 6, Choice::score);
  const std::vector<std::vector<std::int32_t>> want = {
      {0, 1, 2, 3, 4, 5}, {200, 0, 1, 2, 3, 4}, {31, 63, 64, 255, 0, 1}, {0, 1, 2, 3, 4, 5}};
  for (std::size_t t = 0; t < want.size(); ++t) {
    const auto* experts = got.experts.data<const std::int32_t>() + t * 6;
    EXPECT_EQ(std::vector<std::int32_t>(experts, experts + 6), want[t]) << "token " << t;
  }
}

// Below -20 scores are tiny and above 20 they are square roots; biases decide, weights ignore them.
TEST_F(CudaMoeRoute, LargeLogitsAndBiases) {
  Inputs in = inputs(64, 64, 6);
  for (std::int64_t i = 0; i < in.logits.numel(); ++i) in.logits.data<float>()[i] *= 15.0f;
  for (int e = 0; e < 64; ++e) in.bias.data<float>()[e] = e % 2 == 0 ? -30.0f : 0.0f;
  const Routes want = on_cpu(in, 6, Choice::score), got = on_gpu(in, 6, Choice::score);
  expect_same_bytes(got.experts, want.experts, "experts");
  expect_close(got.weights, want.weights, 1e-6, 0, "weights");
}

TEST_F(CudaMoeRoute, ATokenHasItsBitsInAnyBatch) {
  const Inputs in = inputs(1000, 384, 6);
  const Routes all = on_gpu(in, 6, Choice::score);
  for (const std::int64_t t : {0, 1, 517, 999}) {
    Inputs one = in;
    one.logits = in.logits.slice(t, t + 1);
    const Routes got = on_gpu(one, 6, Choice::score);
    expect_same_bytes(got.experts, all.experts.slice(t, t + 1), "experts");
    expect_same_bytes(got.weights, all.weights.slice(t, t + 1), "weights");
  }
}

// A sum of topk terms in the CPU's order, of scores and slopes within a few units in the last
// place. dweights minus their mean cancels: 1e-5. Forced experts repeat.
TEST_F(CudaMoeRoute, BackwardIsTheCpus) {
  for (const auto& [n_tokens, n_experts, topk] : std::vector<std::array<std::int64_t, 3>>{
           {0, 16, 2}, {1, 256, 6}, {130, 384, 6}, {7, 37, 5}, {9, 4, 6}, {3, 100, 40}}) {
    const Inputs in = inputs(n_tokens, n_experts, topk);
    const Tensor dweights = random({n_tokens, topk}, DType::f32);
    const Tensor want = Tensor::empty({n_tokens, n_experts}, DType::f32);
    run_cpu(kMoeRouteBackward, DType::f32,
            {.dlogits = want,
             .dweights = dweights,
             .logits = in.logits,
             .experts = in.forced,
             .routed_scaling_factor = 1.5f});
    const Tensor got = device_empty(want.shape(), DType::f32), dw = to_device(dweights);
    const Tensor logits = to_device(in.logits), experts = to_device(in.forced);
    run_gpu(kMoeRouteBackward, DType::f32,
            {.dlogits = got,
             .dweights = dw,
             .logits = logits,
             .experts = experts,
             .routed_scaling_factor = 1.5f});
    expect_close(to_host(got), want, 1e-5, 1e-7, "moe_route_backward");
  }
}

}  // namespace
}  // namespace hadal::test
