#include <algorithm>
#include <numeric>

#include "cuda/support.h"
#include "kernels/moe.h"

namespace hadal::test {
namespace {

class CudaMoeBackward : public CudaTest {
 protected:
  struct Case {
    std::int64_t n_tokens, topk, n_experts, n_shared, hidden, width;
    DType activation = DType::f32, format = DType::f32;
    float limit = 0;
  };
  struct Experts {
    std::vector<ExpertWeights> weights;
    std::vector<Tensor> storage;  // of the gradients: gate, up, down of every expert
    std::vector<ExpertGradients> gradients;
  };
  struct Inputs {
    Tensor x, dy, experts, weights;
    Experts routed, shared;
  };
  struct Outputs {
    Tensor dx, dweights;
  };

  static std::string describe(const Case& c) {
    return std::string(to_string(c.activation)) + " x " + to_string(c.format) + ", " +
           std::to_string(c.n_tokens) + " tokens to " + std::to_string(c.topk) + " of " +
           std::to_string(c.n_experts) + " + " + std::to_string(c.n_shared) + ", " +
           std::to_string(c.hidden) + " x " + std::to_string(c.width);
  }

  static void bind(Experts& e) {
    e.gradients.clear();
    for (std::size_t i = 0; i < e.weights.size(); ++i) {
      e.gradients.push_back({e.storage[3 * i], e.storage[3 * i + 1], e.storage[3 * i + 2]});
    }
  }
  Experts random_experts(const Case& c, std::int64_t n) {
    Experts e;
    for (std::int64_t i = 0; i < n; ++i) {
      e.weights.push_back({random_weight(c.width, c.hidden, c.format),
                           random_weight(c.width, c.hidden, c.format),
                           random_weight(c.hidden, c.width, c.format)});
      e.storage.push_back(random({c.width, c.hidden}, DType::f32, 1e-4f));
      e.storage.push_back(random({c.width, c.hidden}, DType::f32, 1e-4f));
      e.storage.push_back(random({c.hidden, c.width}, DType::f32, 1e-4f));
    }
    bind(e);
    return e;
  }
  // Expert 1 gets no token; a token's experts differ and come in any order.
  Inputs random_inputs(const Case& c) {
    Inputs in{.x = random({c.n_tokens, c.hidden}, c.activation),
              .dy = random({c.n_tokens, c.hidden}, DType::f32, 1e-2f),
              .experts = Tensor::empty({c.n_tokens, c.topk}, DType::i32),
              .weights = random({c.n_tokens, c.topk}, DType::f32),
              .routed = random_experts(c, c.n_experts),
              .shared = random_experts(c, c.n_shared)};
    std::vector<std::int32_t> all;
    for (std::int32_t e = 0; e < c.n_experts; ++e) {
      if (e != 1 || c.n_experts <= c.topk) all.push_back(e);
    }
    for (std::int64_t t = 0; t < c.n_tokens; ++t) {
      std::shuffle(all.begin(), all.end(), rng());
      std::copy_n(all.begin(), c.topk, in.experts.data<std::int32_t>() + t * c.topk);
    }
    return in;
  }

  Experts to_device(const Experts& e) {
    Experts d;
    for (const ExpertWeights& w : e.weights) {
      d.weights.push_back({CudaTest::to_device(w.gate_proj), CudaTest::to_device(w.up_proj),
                           CudaTest::to_device(w.down_proj)});
    }
    for (const Tensor& t : e.storage) d.storage.push_back(CudaTest::to_device(t));
    bind(d);
    return d;
  }
  Inputs to_device(const Inputs& in) {
    return {CudaTest::to_device(in.x),
            CudaTest::to_device(in.dy),
            CudaTest::to_device(in.experts),
            CudaTest::to_device(in.weights),
            to_device(in.routed),
            to_device(in.shared)};
  }
  static MoeExpertsBackwardArgs args(const Case& c, const Inputs& in, const Outputs& out) {
    return {.dx = out.dx,
            .dweights = out.dweights,
            .dy = in.dy,
            .x = in.x,
            .experts = in.experts,
            .weights = in.weights,
            .routed = in.routed.weights,
            .shared = in.shared.weights,
            .drouted = in.routed.gradients,
            .dshared = in.shared.gradients,
            .swiglu_limit = c.limit,
            .shared_swiglu_limit = c.limit};
  }
  Outputs run_on_gpu(const Case& c, const Inputs& in) {
    const Outputs out{device_empty(in.x.shape(), DType::f32),
                      device_empty(in.weights.shape(), DType::f32)};
    run_gpu(kMoeExpertsBackward, c.activation, args(c, in, out));
    return out;
  }

  void expect_same(const Case& c, double rel) {
    const std::string what = describe(c);
    const Inputs in = random_inputs(c), device = to_device(in);
    const Tensor untouched =
        c.n_experts > c.topk && c.n_experts > 1 ? copy_of(in.routed.storage[3]) : Tensor();
    const Outputs want{Tensor::empty(in.x.shape(), DType::f32),
                       Tensor::empty(in.weights.shape(), DType::f32)};
    run_cpu(kMoeExpertsBackward, c.activation, args(c, in, want));
    const Outputs got = run_on_gpu(c, device);
    expect_close(to_host(got.dx), want.dx, rel, 1e-9, "dx of " + what);
    if (c.n_experts > 0) {
      expect_close(to_host(got.dweights), want.dweights, rel, 1e-9, "dweights of " + what);
    }
    const char* names[] = {"gate_proj", "up_proj", "down_proj"};
    for (std::size_t i = 0; i < in.routed.storage.size(); ++i) {
      expect_close(
          to_host(device.routed.storage[i]), in.routed.storage[i], rel, 1e-9,
          std::string(names[i % 3]) + " of expert " + std::to_string(i / 3) + " of " + what);
    }
    for (std::size_t i = 0; i < in.shared.storage.size(); ++i) {
      expect_close(to_host(device.shared.storage[i]), in.shared.storage[i], rel, 1e-9,
                   std::string(names[i % 3]) + " of a shared expert of " + what);
    }
    if (untouched) {
      expect_same_bytes(to_host(device.routed.storage[3]), untouched,
                        "the expert without tokens of " + what);
    }
  }
};

// Sums in another order, exponentials of another polynomial.
constexpr double kF32 = 1e-5;
// Rounded to bf16 (1.1e-3 each in the root of the mean square): dy, its product with down_proj, the
// gradients of gate and up that come of it, and where sums lie near a tie gate and up themselves.
constexpr double kBf16 = 5e-3;

TEST_F(CudaMoeBackward, F32) {
  for (const Case& c : {Case{1, 1, 1, 0, 4, 4},
                        {1, 2, 3, 1, 8, 12},
                        {7, 2, 5, 0, 13, 9},
                        {33, 3, 8, 2, 24, 20},
                        {129, 2, 4, 1, 64, 33},
                        {40, 4, 16, 0, 32, 16, DType::f32, DType::f32, 0.7f},
                        {9, 2, 4, 1, 64, 32, DType::f32, DType::f4_e2m1}}) {
    expect_same(c, kF32);
  }
}

TEST_F(CudaMoeBackward, Bf16) {
  for (const Case& c : {Case{1, 1, 1, 0, 8, 8, DType::bf16, DType::bf16},
                        {17, 2, 5, 1, 32, 24, DType::bf16, DType::bf16},
                        {200, 4, 16, 1, 64, 48, DType::bf16, DType::bf16},
                        {600, 2, 4, 0, 264, 136, DType::bf16, DType::bf16},  // past a tile
                        {1000, 4, 32, 1, 128, 64, DType::bf16, DType::bf16, 10.0f}}) {
    expect_same(c, kBf16);
  }
}

// What tensor cores cannot take is multiplied in f32: the forward's bf16 roundings of gate, up and
// hidden are all that is left.
TEST_F(CudaMoeBackward, OddWidthsOfBf16) {
  expect_same({65, 2, 4, 1, 20, 12, DType::bf16, DType::bf16}, 1e-3);
}

// Inputs of quantised experts go through E4M3: a value of gate or up at a tie of bf16 moves one
// of E4M3 by up to 2^-4 of itself.
TEST_F(CudaMoeBackward, PublishedFormats) {
  expect_same({65, 2, 6, 1, 128, 128, DType::bf16, DType::f8_e4m3}, kBf16);
  expect_same({65, 2, 6, 1, 256, 160, DType::bf16, DType::f4_e2m1}, kBf16);
}

TEST_F(CudaMoeBackward, OnlySharedOrOnlyRouted) {
  expect_same({31, 0, 0, 2, 32, 16, DType::bf16, DType::bf16}, kBf16);
  expect_same({31, 2, 4, 0, 32, 16, DType::bf16, DType::bf16}, kBf16);
}

TEST_F(CudaMoeBackward, NothingWantedOrNoTokens) {
  const Case c{12, 2, 4, 1, 16, 8, DType::bf16, DType::bf16};
  Inputs in = to_device(random_inputs(c));
  for (Experts* e : {&in.routed, &in.shared}) {
    for (ExpertGradients& d : e->gradients) d = {};
  }
  run_gpu(kMoeExpertsBackward, c.activation, args(c, in, {}));
  queue().wait();
  Inputs none = in;
  none.x = in.x.slice(0, 0), none.dy = in.dy.slice(0, 0);
  none.experts = in.experts.slice(0, 0), none.weights = in.weights.slice(0, 0);
  run_gpu(kMoeExpertsBackward, c.activation, args(c, none, {}));
}

TEST_F(CudaMoeBackward, SaysWhenATokenGoesNowhere) {
  const Case c{4, 2, 4, 0, 16, 8};
  Inputs in = random_inputs(c);
  in.experts.data<std::int32_t>()[5] = 4;
  const Inputs device = to_device(in);
  EXPECT_THROW(run_on_gpu(c, device), Error);
}

TEST_F(CudaMoeBackward, RepeatsToTheBit) {
  const Case c{3000, 4, 32, 1, 128, 64, DType::bf16, DType::bf16, 10.0f};
  const Inputs in = random_inputs(c);
  Outputs first;
  std::vector<Tensor> first_gradients;
  for (int i = 0; i < 2; ++i) {
    const Inputs device = to_device(in);
    const Outputs out = run_on_gpu(c, device);
    if (i == 0) {
      first = {to_host(out.dx), to_host(out.dweights)};
      for (const Tensor& t : device.routed.storage) first_gradients.push_back(to_host(t));
      continue;
    }
    expect_same_bytes(to_host(out.dx), first.dx, "dx");
    expect_same_bytes(to_host(out.dweights), first.dweights, "dweights");
    for (std::size_t k = 0; k < first_gradients.size(); ++k) {
      expect_same_bytes(to_host(device.routed.storage[k]), first_gradients[k], "a weight's");
    }
  }
}

}  // namespace
}  // namespace hadal::test
