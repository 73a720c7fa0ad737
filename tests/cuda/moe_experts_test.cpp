#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "cuda/support.h"
#include "kernels/moe.h"

namespace hadal::test {
namespace {

struct MoeCase {
  std::int64_t n_tokens, hidden, width, n_experts, topk, n_shared;
  DType routed = DType::f4_e2m1, shared = DType::f8_e4m3;
};

struct Mixture {
  std::vector<ExpertWeights> routed, shared;
};

class CudaMoeExperts : public CudaTest {
 protected:
  Mixture random_mixture(const MoeCase& c) {
    Mixture m;
    const auto add = [&](std::vector<ExpertWeights>& to, std::int64_t n, DType format) {
      for (std::int64_t i = 0; i < n; ++i) {
        to.push_back({random_weight(c.width, c.hidden, format),
                      random_weight(c.width, c.hidden, format),
                      random_weight(c.hidden, c.width, format)});
      }
    };
    add(m.routed, c.n_experts, c.routed);
    add(m.shared, c.n_shared, c.shared);
    return m;
  }
  std::vector<ExpertWeights> to_device_all(const std::vector<ExpertWeights>& experts) {
    std::vector<ExpertWeights> d;
    d.reserve(experts.size());
    for (const ExpertWeights& e : experts) {
      d.push_back({to_device(e.gate_proj), to_device(e.up_proj), to_device(e.down_proj)});
    }
    return d;
  }
  // Weights of all experts in one piece of memory for each projection, as a loader may lay them.
  std::vector<ExpertWeights> to_device_at_stride(const std::vector<ExpertWeights>& experts) {
    std::vector<ExpertWeights> d = to_device_all(experts);
    for (const auto projection :
         {&ExpertWeights::gate_proj, &ExpertWeights::up_proj, &ExpertWeights::down_proj}) {
      for (const auto part : {&QuantTensor::data, &QuantTensor::scale}) {
        const Tensor& first = experts.front().*projection.*part;
        if (!first) continue;
        const auto n = static_cast<std::int64_t>(first.nbytes());
        const Tensor all =
            queue().memory().empty({static_cast<std::int64_t>(experts.size()) * n}, DType::u8);
        for (std::size_t e = 0; e < experts.size(); ++e) {
          const auto at = static_cast<std::int64_t>(e) * n;
          Tensor piece = all.slice(at, at + n).reinterpret(first.shape(), first.dtype());
          gpu().upload(experts[e].*projection.*part, piece);
          d[e].*projection.*part = piece;
        }
      }
    }
    return d;
  }

  // topk different experts a token; `favourite` gets every token when it is not negative.
  Tensor random_choice(const MoeCase& c, std::int32_t favourite = -1) {
    Tensor experts = Tensor::empty({c.n_tokens, c.topk}, DType::i32);
    std::vector<std::int32_t> all(static_cast<std::size_t>(c.n_experts));
    for (std::int64_t t = 0; t < c.n_tokens; ++t) {
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), rng());
      if (favourite >= 0) std::swap(*std::find(all.begin(), all.end(), favourite), all[0]);
      std::copy_n(all.begin(), c.topk, experts.data<std::int32_t>() + t * c.topk);
    }
    return experts;
  }
  Tensor random_weights(const MoeCase& c) {
    Tensor weights = random({c.n_tokens, c.topk}, DType::f32);
    for (std::int64_t i = 0; i < weights.numel(); ++i) {
      weights.data<float>()[i] = 0.1f + std::fabs(weights.data<float>()[i]);
    }
    return weights;
  }

  static bool is_fp8(DType weight) { return weight == DType::f8_e4m3 || weight == DType::f4_e2m1; }

  static constexpr float kLimit = 1.0f, kSharedLimit = 0.75f;  // both cut something off

  Tensor on_gpu(const Tensor& x, const Tensor& experts, const Tensor& weights,
                const std::vector<ExpertWeights>& routed, const std::vector<ExpertWeights>& shared,
                ClampCounts* clamps = nullptr) {
    const Tensor y = device_empty(x.shape(), x.dtype());
    const Tensor dx = to_device(x), de = to_device(experts), dw = to_device(weights);
    const Tensor counts = to_device(Tensor::zeros({4}, DType::i64));
    run_gpu(
        kMoeExperts, x.dtype(),
        {.y = y,
         .x = dx,
         .experts = de,
         .weights = dw,
         .routed = routed,
         .shared = shared,
         .swiglu_limit = kLimit,
         .shared_swiglu_limit = kSharedLimit,
         .clamps = clamps == nullptr ? nullptr : reinterpret_cast<ClampCounts*>(counts.bytes())});
    if (clamps != nullptr) {
      const Tensor host = to_host(counts);
      *clamps += *reinterpret_cast<const ClampCounts*>(host.bytes());
    }
    return to_host(y);
  }

  void compare(const MoeCase& c, DType dtype, std::int32_t favourite = -1) {
    const std::string what =
        fmt::format("{} tokens {} [{}], {} {} experts of {} top {}, {} shared {}", c.n_tokens,
                    to_string(dtype), c.hidden, c.n_experts, to_string(c.routed), c.width, c.topk,
                    c.n_shared, to_string(c.shared));
    const Mixture m = random_mixture(c);
    const Tensor x = random({c.n_tokens, c.hidden}, dtype);
    const Tensor experts = random_choice(c, favourite), weights = random_weights(c);
    const Tensor want = Tensor::empty(x.shape(), dtype);
    ClampCounts want_clamps, got_clamps;
    run_cpu(kMoeExperts, dtype,
            {.y = want,
             .x = x,
             .experts = experts,
             .weights = weights,
             .routed = m.routed,
             .shared = m.shared,
             .swiglu_limit = kLimit,
             .shared_swiglu_limit = kSharedLimit,
             .clamps = &want_clamps});
    const Tensor got =
        on_gpu(x, experts, weights, to_device_all(m.routed), to_device_all(m.shared), &got_clamps);
    // In f32 only the order of sums differs. In bf16 a gate, an up or a hidden value may round the
    // other way (2^-8), and a hidden value again to FP8 (2^-4), each for few of many terms. With
    // FP8 products one hidden value in ten rounds otherwise to bf16, and so one in a hundred to
    // FP8.
    const bool fp8 = is_fp8(c.routed) || is_fp8(c.shared);
    expect_close(got, want, dtype == DType::f32 ? 1e-5 : fp8 ? 2e-2 : 6e-3, 1e-6, what);
    // A value next to the limit may be cut on one side only.
    EXPECT_EQ(got_clamps.n_values, want_clamps.n_values) << what;
    const auto near = [&](std::int64_t a, std::int64_t b) {
      return std::abs(a - b) <= 2 + want_clamps.n_values / 1000;
    };
    EXPECT_PRED2(near, got_clamps.gate_above, want_clamps.gate_above) << what;
    EXPECT_PRED2(near, got_clamps.up_above, want_clamps.up_above) << what;
    EXPECT_PRED2(near, got_clamps.up_below, want_clamps.up_below) << what;
  }
};

TEST_F(CudaMoeExperts, AgreesWithTheCpu) {
  for (const MoeCase& c : {
           MoeCase{0, 128, 128, 4, 2, 1},
           MoeCase{1, 128, 128, 4, 2, 1},
           MoeCase{1, 512, 256, 16, 6, 1},
           MoeCase{5, 256, 160, 7, 3, 2},
           MoeCase{16, 256, 128, 32, 4, 1},
           MoeCase{17, 384, 96, 5, 2, 1},
           MoeCase{100, 256, 224, 8, 6, 1},
           MoeCase{150, 128, 128, 3, 3, 0},
           MoeCase{400, 256, 192, 4, 2, 1},
           MoeCase{300, 512, 640, 3, 2, 1},
       }) {
    compare(c, DType::bf16);
    compare(c, DType::f32);
  }
}

TEST_F(CudaMoeExperts, AgreesWithTheCpuInEveryFormat) {
  for (const DType routed : {DType::f4_e2m1, DType::f8_e4m3, DType::bf16, DType::f32}) {
    for (const DType shared : {DType::f8_e4m3, DType::bf16, DType::f32}) {
      for (const std::int64_t n_tokens : {3, 90}) {
        compare({n_tokens, 256, 128, 6, 2, 1, routed, shared}, DType::bf16);
      }
    }
  }
}

TEST_F(CudaMoeExperts, RunsWithSharedExpertsOnly) {
  for (const std::int64_t n_tokens : {1, 30, 130}) {
    const MoeCase c{n_tokens, 256, 128, 0, 1, 2};
    const Tensor nobody = Tensor::empty({n_tokens, 0}, DType::i32);
    const Tensor no_weights = Tensor::empty({n_tokens, 0}, DType::f32);
    const Mixture m = random_mixture(c);
    const Tensor x = random({n_tokens, 256}, DType::bf16),
                 want = Tensor::empty(x.shape(), x.dtype());
    run_cpu(kMoeExperts, DType::bf16,
            {.y = want,
             .x = x,
             .experts = nobody,
             .weights = no_weights,
             .routed = {},
             .shared = m.shared,
             .swiglu_limit = kLimit,
             .shared_swiglu_limit = kSharedLimit});
    expect_close(on_gpu(x, nobody, no_weights, {}, to_device_all(m.shared)), want, 2e-2, 1e-6,
                 "shared only");
  }
}

// One expert has every token and many have none.
TEST_F(CudaMoeExperts, TakesAnUnevenLoad) {
  compare({300, 128, 64, 64, 2, 1}, DType::bf16, 63);
  compare({40, 128, 64, 300, 2, 1}, DType::f32, 0);
}

// More than 1,024 assignments are sorted by several blocks of threads, and more than 1,024 experts
// placed in several rounds.
TEST_F(CudaMoeExperts, SortsManyAssignmentsAndExperts) {
  compare({700, 64, 32, 20, 6, 0, DType::bf16}, DType::bf16);
  compare({3, 32, 32, 1500, 7, 0, DType::bf16}, DType::bf16);
  compare({200, 32, 32, 1500, 7, 0, DType::bf16}, DType::f32);
}

TEST_F(CudaMoeExperts, FindsExpertsAtAStrideAndAnywhere) {
  const MoeCase c{60, 256, 128, 9, 3, 1};
  const Mixture m = random_mixture(c);
  const Tensor x = random({c.n_tokens, c.hidden}, DType::bf16);
  const Tensor experts = random_choice(c), weights = random_weights(c);
  const std::vector<ExpertWeights> shared = to_device_all(m.shared);
  const Tensor a = on_gpu(x, experts, weights, to_device_all(m.routed), shared);
  const Tensor b = on_gpu(x, experts, weights, to_device_at_stride(m.routed), shared);
  expect_same_bytes(a, b, "experts at a stride");
}

// A token has the same bits alone and in any batch, whatever the others choose.
TEST_F(CudaMoeExperts, DoesNotDependOnTheBatch) {
  struct Case {
    DType activation, routed, shared;
    std::int64_t n_tokens;
  };
  for (const Case& k : {
           Case{DType::bf16, DType::f4_e2m1, DType::f8_e4m3, 3000},
           Case{DType::bf16, DType::f8_e4m3, DType::bf16, 3000},
           Case{DType::bf16, DType::bf16, DType::bf16, 3000},
           Case{DType::f32, DType::f4_e2m1, DType::f8_e4m3, 1000},
       }) {
    const MoeCase c{k.n_tokens, 384, 160, 8, 3, 1, k.routed, k.shared};
    const Mixture m = random_mixture(c);
    const std::vector<ExpertWeights> routed = to_device_all(m.routed);
    const std::vector<ExpertWeights> shared = to_device_all(m.shared);
    const Tensor x = random({c.n_tokens, c.hidden}, k.activation);
    const Tensor experts = random_choice(c), weights = random_weights(c);
    const Tensor whole = on_gpu(x, experts, weights, routed, shared);
    for (const std::int64_t n : {1, 3, 16, 17, 64, 65, 200, 900}) {
      for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{97}, c.n_tokens - n}) {
        const std::int64_t end = begin + n;
        expect_same_bytes(
            on_gpu(x.slice(begin, end), experts.slice(begin, end), weights.slice(begin, end),
                   routed, shared),
            whole.slice(begin, end),
            fmt::format("{}, {} routed, {} shared, tokens {} to {}", to_string(k.activation),
                        to_string(k.routed), to_string(k.shared), begin, end));
      }
    }
  }
}

}  // namespace
}  // namespace hadal::test
