#include "cuda/support.h"
#include "kernels/hyper_connection.h"

namespace hadal::test {
namespace {

constexpr float kEps = 1e-6f;

class CudaHcBackward : public CudaTest {
 protected:
  struct Case {
    std::int64_t n_tokens, n, hidden;
  };
  struct Inputs {
    HcWeights weights;
    Tensor streams, dx, dpost, dcomb, mixes, rms;
  };
  struct Gradients {
    Tensor dstreams, dfn, dscale, dbase;
  };
  static HcGateBackwardArgs args(const Inputs& in, const Gradients& g, const HcWeights& w) {
    return {.dstreams = g.dstreams,
            .dfn = g.dfn,
            .dscale = g.dscale,
            .dbase = g.dbase,
            .dx = in.dx,
            .dpost = in.dpost,
            .dcomb = in.dcomb,
            .streams = in.streams,
            .saved = {in.mixes, in.rms},
            .weights = &w,
            .sinkhorn_iters = 20,
            .hc_eps = kEps};
  }
  // What forward saved: mixes of unit scale, and the factor of streams of unit scale.
  Inputs inputs(const Case& c, bool head, DType dtype, DType fn_dtype) {
    const std::int64_t mixes = head ? c.n : (2 + c.n) * c.n;
    Inputs in{{random_weight(mixes, c.n * c.hidden, fn_dtype), random({head ? 1 : 3}, DType::f32),
               random({mixes}, DType::f32)},
              random({c.n_tokens, c.n, c.hidden}, dtype),
              random({c.n_tokens, c.hidden}, DType::f32),
              {},
              {},
              random({c.n_tokens, mixes}, DType::f32),
              random({c.n_tokens}, DType::f32, 0.1f)};
    if (!head) {
      in.dpost = random({c.n_tokens, c.n}, DType::f32);
      in.dcomb = random({c.n_tokens, c.n, c.n}, DType::f32);
    }
    for (std::int64_t t = 0; t < c.n_tokens; ++t) in.rms.data<float>()[t] += 1.0f;
    return in;
  }
  Inputs on_device(const Inputs& in) {
    return {{to_device(in.weights.fn), to_device(in.weights.scale), to_device(in.weights.base)},
            to_device(in.streams),
            to_device(in.dx),
            to_device(in.dpost),
            to_device(in.dcomb),
            to_device(in.mixes),
            to_device(in.rms)};
  }

  // Sums of up to n * hidden products and over up to 1,100 tokens, in another order: sqrt of their
  // number roundings of terms of both signs, 1e-5 of the result's norm. exp_f32 of the CPU is
  // within 2 ulp, and a Sinkhorn iteration of 20 steps keeps errors as they are.
  void expect_cpus(const Case& c, bool head, DType dtype, DType fn_dtype, int wanted) {
    const Inputs in = inputs(c, head, dtype, fn_dtype), device = on_device(in);
    const std::int64_t mixes = in.mixes.dim(1), width = c.n * c.hidden;
    const auto some = [&](int bit, Shape shape) {
      return (wanted & bit) != 0 ? random(shape, DType::f32) : Tensor();
    };
    const Gradients want{some(1, {c.n_tokens, c.n, c.hidden}), some(2, {mixes, width}),
                         some(4, {head ? 1 : 3}), some(8, {mixes})};
    const Gradients got{to_device(want.dstreams), to_device(want.dfn), to_device(want.dscale),
                        to_device(want.dbase)};
    run_cpu(kHcGateBackward, dtype, args(in, want, in.weights));
    run_gpu(kHcGateBackward, dtype, args(device, got, device.weights));
    const std::string of = " of " + std::to_string(c.n_tokens) + " x " + std::to_string(c.n) +
                           " x " + std::to_string(c.hidden) + (head ? ", head" : "");
    if (want.dstreams) {
      expect_close(to_host(got.dstreams), want.dstreams, 1e-5, 1e-6, "dstreams" + of);
    }
    if (want.dfn) expect_close(to_host(got.dfn), want.dfn, 1e-5, 1e-6, "dfn" + of);
    if (want.dscale) expect_close(to_host(got.dscale), want.dscale, 3e-5, 1e-5, "dscale" + of);
    if (want.dbase) expect_close(to_host(got.dbase), want.dbase, 3e-5, 1e-5, "dbase" + of);
  }
};

TEST_F(CudaHcBackward, GatesAreTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool head : {false, true}) {
      // One past a chunk of 64 and of 512 tokens, pairs of columns that straddle streams, more
      // mixes than are done at once (6 streams have 48).
      for (const Case& c :
           {Case{0, 4, 64}, Case{1, 4, 4096}, Case{7, 4, 64}, Case{65, 4, 129}, Case{513, 4, 96},
            Case{1100, 2, 64}, Case{5, 1, 33}, Case{70, 3, 51}, Case{9, 6, 96}, Case{3, 16, 24}}) {
        expect_cpus(c, head, dtype, DType::f32, 15);
      }
    }
  }
  expect_cpus({70, 4, 256}, false, DType::bf16, DType::bf16, 15);
}

TEST_F(CudaHcBackward, WhatIsNotWantedIsLeftOut) {
  for (const int wanted : {1, 2, 4, 8, 12, 14, 13}) {
    expect_cpus({70, 4, 96}, false, DType::bf16, DType::f32, wanted);
  }
}

// More tokens than fn's partial sums have room for at once.
TEST_F(CudaHcBackward, ManyTokens) {
  expect_cpus({8192 + 700, 4, 8}, false, DType::f32, DType::f32, 15);
}

TEST_F(CudaHcBackward, ARunHasTheSameBitsTwice) {
  const Case c{600, 4, 256};
  const Inputs in = on_device(inputs(c, false, DType::bf16, DType::f32));
  const auto run = [&] {
    const Gradients g{to_device(Tensor::zeros({c.n_tokens, c.n, c.hidden}, DType::f32)),
                      to_device(Tensor::zeros({24, c.n * c.hidden}, DType::f32)),
                      to_device(Tensor::zeros({3}, DType::f32)),
                      to_device(Tensor::zeros({24}, DType::f32))};
    run_gpu(kHcGateBackward, DType::bf16, args(in, g, in.weights));
    return Gradients{to_host(g.dstreams), to_host(g.dfn), to_host(g.dscale), to_host(g.dbase)};
  };
  const Gradients first = run(), second = run();
  expect_same_bytes(second.dstreams, first.dstreams, "dstreams");
  expect_same_bytes(second.dfn, first.dfn, "dfn");
  expect_same_bytes(second.dscale, first.dscale, "dscale");
  expect_same_bytes(second.dbase, first.dbase, "dbase");
}

// Sums over columns in another order: 1e-5 of the norm. Mixes of streams: 16 products at most.
TEST_F(CudaHcBackward, PostIsTheCpus) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Case& c : {Case{0, 4, 64}, Case{1, 4, 4096}, Case{7, 4, 129}, Case{65, 4, 1028},
                          Case{3, 1, 70}, Case{9, 3, 64}, Case{2, 16, 40}}) {
      for (const bool all : {true, false}) {  // false: the gradients of the streams alone
        const Tensor dy = random({c.n_tokens, c.n, c.hidden}, DType::f32);
        const Tensor a = random({c.n_tokens, c.hidden}, dtype);
        const Tensor streams = random({c.n_tokens, c.n, c.hidden}, dtype);
        const Tensor post = random({c.n_tokens, c.n}, DType::f32);
        const Tensor comb = random({c.n_tokens, c.n, c.n}, DType::f32);
        const auto outputs = [&](auto&& make) {
          return std::vector<Tensor>{all ? make({c.n_tokens, c.hidden}) : Tensor(),
                                     make({c.n_tokens, c.n, c.hidden}),
                                     all ? make({c.n_tokens, c.n}) : Tensor(),
                                     all ? make({c.n_tokens, c.n, c.n}) : Tensor()};
        };
        const std::vector<Tensor> want =
            outputs([](Shape shape) { return Tensor::empty(shape, DType::f32); });
        const std::vector<Tensor> got =
            outputs([&](Shape shape) { return device_empty(shape, DType::f32); });
        const Tensor on[] = {to_device(dy), to_device(a), to_device(streams), to_device(post),
                             to_device(comb)};
        run_cpu(kHcPostBackward, dtype,
                {.da = want[0],
                 .dstreams = want[1],
                 .dpost = want[2],
                 .dcomb = want[3],
                 .dy = dy,
                 .a = a,
                 .streams = streams,
                 .post = post,
                 .comb = comb});
        run_gpu(kHcPostBackward, dtype,
                {.da = got[0],
                 .dstreams = got[1],
                 .dpost = got[2],
                 .dcomb = got[3],
                 .dy = on[0],
                 .a = on[1],
                 .streams = on[2],
                 .post = on[3],
                 .comb = on[4]});
        const char* const names[] = {"da", "dstreams", "dpost", "dcomb"};
        for (std::size_t i = 0; i < want.size(); ++i) {
          if (!want[i]) continue;
          expect_close(to_host(got[i]), want[i], i < 2 ? 1e-6 : 1e-5, i < 2 ? 1e-7 : 1e-5,
                       names[i] + (" of " + std::to_string(c.n_tokens) + " tokens, " +
                                   std::to_string(c.n) + " streams"));
        }
      }
    }
  }
}

}  // namespace
}  // namespace hadal::test
