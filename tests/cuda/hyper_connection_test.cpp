#include "kernels/hyper_connection.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

constexpr int kSinkhorn = 20;
constexpr float kEps = 1e-6f;

class CudaHyperConnection : public CudaTest {
 protected:
  // Mixes of unit scale, as trained ones: streams of unit scale, and scales that make gates differ.
  HcWeights weights(std::int64_t n, std::int64_t hidden, bool head, DType fn_dtype) {
    const std::int64_t mixes = head ? n : (2 + n) * n;
    return {random_weight(mixes, n * hidden, fn_dtype), random({head ? 1 : 3}, DType::f32),
            random({mixes}, DType::f32)};
  }
  HcWeights to_device_weights(const HcWeights& w) {
    return {to_device(w.fn), to_device(w.scale), to_device(w.base)};
  }
  struct Gates {
    Tensor x, post, comb, mixes, rms;
  };
  static Gates host_gates(std::int64_t n_tokens, std::int64_t n, std::int64_t hidden, DType dtype) {
    return {Tensor::empty({n_tokens, hidden}, dtype), Tensor::empty({n_tokens, n}, DType::f32),
            Tensor::empty({n_tokens, n, n}, DType::f32),
            Tensor::empty({n_tokens, (2 + n) * n}, DType::f32),
            Tensor::empty({n_tokens}, DType::f32)};
  }
  Gates device_gates(std::int64_t n_tokens, std::int64_t n, std::int64_t hidden, DType dtype) {
    return {device_empty({n_tokens, hidden}, dtype), device_empty({n_tokens, n}, DType::f32),
            device_empty({n_tokens, n, n}, DType::f32),
            device_empty({n_tokens, (2 + n) * n}, DType::f32),
            device_empty({n_tokens}, DType::f32)};
  }
  static HcPreArgs pre_args(const Gates& g, const TensorView& streams, const HcWeights& w) {
    return {.x = g.x,
            .post = g.post,
            .comb = g.comb,
            .streams = streams,
            .weights = &w,
            .sinkhorn_iters = kSinkhorn,
            .hc_eps = kEps,
            .norm_eps = kEps,
            .saved = {g.mixes, g.rms}};
  }
};

struct Case {
  std::int64_t n_tokens, n, hidden;
};
// Tokens: none, one, one past the warps of a block, past a tile, past what is projected at once.
// Widths: below, at and beyond a segment of 512 columns, aligned and not; 1 to 6 streams.
const Case kCases[] = {{0, 4, 64},  {1, 4, 4096},  {1, 4, 7168},  {7, 4, 64},   {9, 4, 129},
                       {8, 4, 128}, {49, 4, 1032}, {1061, 4, 96}, {3, 1, 515},  {33, 2, 257},
                       {5, 3, 512}, {65, 6, 96},   {2, 8, 96},    {97, 4, 4096}};

// Mixes are sums of n * hidden products in another order: 1e-6 of their scale, sqrt(n * hidden)
// roundings; their factor, 1 / rms, halves the relative error of a sum of as many squares, which
// the CPU adds in 16 chains of up to 1,792: 2e-6, and mixes carry it. Gates have slopes below 1 in
// them, comb has what twenty normalisations leave of it, times a scale that is a few units at most.
// x in bf16 rounds the other way now and then.
TEST_F(CudaHyperConnection, PreIsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const DType fn_dtype : {DType::f32, DType::bf16}) {
      for (const Case& c : kCases) {
        const HcWeights w = weights(c.n, c.hidden, false, fn_dtype), dw = to_device_weights(w);
        const Tensor streams = random({c.n_tokens, c.n, c.hidden}, dtype);
        const Tensor on_device = to_device(streams);
        const Gates want = host_gates(c.n_tokens, c.n, c.hidden, dtype);
        const Gates got = device_gates(c.n_tokens, c.n, c.hidden, dtype);
        run_cpu(kHcPre, dtype, pre_args(want, streams, w));
        run_gpu(kHcPre, dtype, pre_args(got, on_device, dw));
        const std::string of = " of " + std::to_string(c.n_tokens) + " x " + std::to_string(c.n) +
                               " x " + std::to_string(c.hidden);
        expect_close(to_host(got.rms), want.rms, 4e-6, 0, "rms" + of);
        expect_close(to_host(got.mixes), want.mixes, 4e-6, 1e-7, "mixes" + of);
        expect_close(to_host(got.post), want.post, 4e-6, 1e-7, "post" + of);
        expect_close(to_host(got.comb), want.comb, 1e-5, 1e-6, "comb" + of);
        expect_close(to_host(got.x), want.x, dtype == DType::f32 ? 4e-6 : 1e-3, 0, "x" + of);
      }
    }
  }
}

TEST_F(CudaHyperConnection, HeadIsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : kCases) {
      const HcWeights w = weights(c.n, c.hidden, true, DType::f32), dw = to_device_weights(w);
      const Tensor streams = random({c.n_tokens, c.n, c.hidden}, dtype);
      const Tensor on_device = to_device(streams);
      const Tensor want = Tensor::empty({c.n_tokens, c.hidden}, dtype);
      const Tensor got = device_empty(want.shape(), dtype);
      const Tensor mixes = Tensor::empty({c.n_tokens, c.n}, DType::f32);
      const Tensor rms = Tensor::empty({c.n_tokens}, DType::f32);
      const Tensor got_mixes = device_empty(mixes.shape(), DType::f32);
      const Tensor got_rms = device_empty(rms.shape(), DType::f32);
      run_cpu(kHcHead, dtype,
              {.x = want,
               .streams = streams,
               .weights = &w,
               .hc_eps = kEps,
               .norm_eps = kEps,
               .saved = {mixes, rms}});
      run_gpu(kHcHead, dtype,
              {.x = got,
               .streams = on_device,
               .weights = &dw,
               .hc_eps = kEps,
               .norm_eps = kEps,
               .saved = {got_mixes, got_rms}});
      expect_close(to_host(got_mixes), mixes, 2e-6, 1e-7, "mixes of hc_head");
      expect_close(to_host(got_rms), rms, 4e-6, 0, "rms of hc_head");
      expect_close(to_host(got), want, dtype == DType::f32 ? 4e-6 : 1e-3, 0, "hc_head");
    }
  }
}

// Given the gates, products and sums are rounded in the same order: equal to the bit.
TEST_F(CudaHyperConnection, PostIsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : kCases) {
      const Tensor a = random({c.n_tokens, c.hidden}, dtype);
      const Tensor streams = random({c.n_tokens, c.n, c.hidden}, dtype);
      const Tensor post = random({c.n_tokens, c.n}, DType::f32);
      const Tensor comb = random({c.n_tokens, c.n, c.n}, DType::f32);
      const Tensor want = Tensor::empty(streams.shape(), dtype);
      run_cpu(kHcPost, dtype, {.y = want, .a = a, .streams = streams, .post = post, .comb = comb});
      const Tensor got = device_empty(streams.shape(), dtype);
      const Tensor da = to_device(a), ds = to_device(streams), dp = to_device(post),
                   dc = to_device(comb);
      run_gpu(kHcPost, dtype, {.y = got, .a = da, .streams = ds, .post = dp, .comb = dc});
      expect_same_bytes(to_host(got), want, "hc_post");
    }
  }
}

// Without saved values, and with every kernel variant that the number of tokens chooses.
TEST_F(CudaHyperConnection, ATokenHasItsBitsInAnyBatch) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t hidden : {96, 129, 4096}) {
      const std::int64_t n_tokens = hidden == 4096 ? 70 : 1100;
      const HcWeights w = to_device_weights(weights(4, hidden, false, DType::f32));
      const Tensor streams = to_device(random({n_tokens, 4, hidden}, dtype));
      const Gates all = device_gates(n_tokens, 4, hidden, dtype);
      run_gpu(kHcPre, dtype, pre_args(all, streams, w));
      const auto expect_chunk = [&](std::int64_t begin, std::int64_t end) {
        const Gates some = device_gates(end - begin, 4, hidden, dtype);
        HcPreArgs args = pre_args(some, streams.slice(begin, end), w);
        args.saved = {};
        run_gpu(kHcPre, dtype, args);
        expect_same_bytes(to_host(some.x), to_host(all.x.slice(begin, end)), "x");
        expect_same_bytes(to_host(some.post), to_host(all.post.slice(begin, end)), "post");
        expect_same_bytes(to_host(some.comb), to_host(all.comb.slice(begin, end)), "comb");
      };
      for (const std::int64_t t : {std::int64_t{0}, std::int64_t{3}, n_tokens - 1}) {
        expect_chunk(t, t + 1);
      }
      expect_chunk(0, 8);
      expect_chunk(5, 69);
      expect_chunk(1, n_tokens);
    }
  }
}

// Columns of comb add up to 1: the iteration ends on them.
TEST_F(CudaHyperConnection, CombIsNormalised) {
  const HcWeights w = to_device_weights(weights(4, 64, false, DType::f32));
  const Gates g = device_gates(50, 4, 64, DType::f32);
  const Tensor streams = to_device(random({50, 4, 64}, DType::f32));
  run_gpu(kHcPre, DType::f32, pre_args(g, streams, w));
  const Tensor comb = to_host(g.comb);
  for (std::int64_t t = 0; t < 50; ++t) {
    for (int k = 0; k < 4; ++k) {
      float sum = 0;
      for (int j = 0; j < 4; ++j) sum += comb.data<float>()[(t * 4 + j) * 4 + k];
      EXPECT_NEAR(sum, 1.0f, 4e-6f) << "token " << t << ", column " << k;
    }
  }
}

}  // namespace
}  // namespace hadal::test
