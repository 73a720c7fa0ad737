#include "cuda/support.h"
#include "kernels/compress_kv.h"

namespace hadal::test {
namespace {

class CudaCompressKvBackward : public CudaTest {};

// Softmaxes over at most 256 rows; exp_f32 of the CPU is within 2 ulp, and so is CUDA's: 1e-6 of
// the weights, and kv minus the pooled value has the scale of kv. The bias adds up windows.
TEST_F(CudaCompressKvBackward, IsTheCpus) {
  struct Case {
    std::int64_t ratio, width;
    bool overlap;
    std::vector<std::int64_t> lengths;
  };
  const Case cases[] = {{4, 64, true, {0}},
                        {4, 512, true, {33}},
                        {4, 128, true, {8, 0, 3, 4, 17}},
                        {128, 130, false, {127, 128, 300}},
                        {128, 512, false, {1000}},
                        {1, 5, true, {7}},
                        {3, 7, false, {10, 600}},
                        {4, 33, true, {1100, 2}}};
  for (const Case& c : cases) {
    std::vector<CompressSequence> sequences;
    std::int64_t n_tokens = 0, n_entries = 0;
    for (const std::int64_t length : c.lengths) {
      sequences.push_back({.begin = n_tokens,
                           .end = n_tokens + length,
                           .start = 0,
                           .first_entry = n_entries,
                           .tail = {}});
      n_tokens += length;
      n_entries += length / c.ratio;
    }
    const std::int64_t row = c.overlap ? 2 * c.width : c.width;
    const Tensor dentries = random({n_entries, c.width}, DType::f32);
    const Tensor kv = random({n_tokens, row}, DType::f32);
    const Tensor gate = random({n_tokens, row}, DType::f32, 2.0f);
    const Tensor dkv = Tensor::empty(kv.shape(), DType::f32);
    const Tensor dgate = Tensor::empty(kv.shape(), DType::f32);
    const Tensor dbias = random({c.ratio, row}, DType::f32);
    const auto args = [&](const Tensor& a, const Tensor& b, const Tensor& bias, const Tensor& e,
                          const Tensor& k, const Tensor& g) {
      return CompressKvBackwardArgs{.dkv = a,
                                    .dgate = b,
                                    .dposition_bias = bias,
                                    .dentries = e,
                                    .kv = k,
                                    .gate = g,
                                    .ratio = c.ratio,
                                    .overlap = c.overlap,
                                    .sequences = sequences};
    };
    const Tensor got_dkv = device_empty(kv.shape(), DType::f32);
    const Tensor got_dgate = device_empty(kv.shape(), DType::f32);
    const Tensor got_dbias = to_device(dbias);
    const Tensor e = to_device(dentries), k = to_device(kv), g = to_device(gate);
    run_cpu(kCompressKvBackward, DType::f32, args(dkv, dgate, dbias, dentries, kv, gate));
    run_gpu(kCompressKvBackward, DType::f32, args(got_dkv, got_dgate, got_dbias, e, k, g));
    const std::string of = " of ratio " + std::to_string(c.ratio) + ", width " +
                           std::to_string(c.width) + ", " + std::to_string(n_tokens) + " tokens";
    expect_close(to_host(got_dkv), dkv, 2e-6, 1e-7, "dkv" + of);
    expect_close(to_host(got_dgate), dgate, 3e-6, 1e-6, "dgate" + of);
    expect_close(to_host(got_dbias), dbias, 1e-5, 1e-6, "dposition_bias" + of);
    // Without the bias, the rest is the same.
    const Tensor alone = device_empty(kv.shape(), DType::f32);
    run_gpu(kCompressKvBackward, DType::f32, args(alone, got_dgate, {}, e, k, g));
    expect_same_bytes(to_host(alone), to_host(got_dkv), "dkv" + of);
  }
}

}  // namespace
}  // namespace hadal::test
