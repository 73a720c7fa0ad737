#include "kernels/cross_entropy.h"

#include "cuda/support.h"

namespace hadal::test {
namespace {

class CudaCrossEntropy : public CudaTest {
 protected:
  struct Case {
    std::int64_t n_tokens, vocab, hidden;
    float spread = 1.0f;  // of the logits
  };
  static constexpr float kScale = 1.0f / 1024;

  // Every fifth row has no target.
  Tensor targets(const Case& c) {
    Tensor t = random_ids({c.n_tokens}, static_cast<std::int32_t>(c.vocab));
    for (std::int64_t i = 3; i < c.n_tokens; i += 5) t.data<std::int32_t>()[i] = -1;
    return t;
  }

  void expect_same(const Case& c, DType activation, DType format, double rel) {
    const std::string what = std::string(to_string(activation)) + " x " + to_string(format) + ", " +
                             std::to_string(c.n_tokens) + " x " + std::to_string(c.vocab) + " x " +
                             std::to_string(c.hidden);
    const Tensor x = random({c.n_tokens, c.hidden}, activation, c.spread), target = targets(c);
    const QuantTensor head = random_weight(c.vocab, c.hidden, format);
    const Tensor before = random({c.vocab, c.hidden}, DType::f32, 1e-4f);
    const Tensor loss = Tensor::empty({c.n_tokens}, DType::f32);
    const Tensor dx = Tensor::empty(x.shape(), DType::f32), dhead = copy_of(before);
    run_cpu(kCrossEntropy, activation,
            {.loss = loss,
             .dx = dx,
             .dhead = dhead,
             .x = x,
             .head = &head,
             .targets = target,
             .scale = kScale});
    const Tensor loss_gpu = device_empty(loss.shape(), DType::f32);
    const Tensor dx_gpu = device_empty(x.shape(), DType::f32), dhead_gpu = to_device(before);
    const Tensor x_gpu = to_device(x), target_gpu = to_device(target);
    const QuantTensor head_gpu = to_device(head);
    run_gpu(kCrossEntropy, activation,
            {.loss = loss_gpu,
             .dx = dx_gpu,
             .dhead = dhead_gpu,
             .x = x_gpu,
             .head = &head_gpu,
             .targets = target_gpu,
             .scale = kScale});
    // Logits are f32 sums of the same products whatever the activations are.
    expect_close(to_host(loss_gpu), loss, 3e-6, 2e-6, "loss of " + what);
    expect_close(to_host(dx_gpu), dx, rel, 1e-10, "dx of " + what);
    expect_close(to_host(dhead_gpu), dhead, rel, 1e-10, "dhead of " + what);
    // Losses alone: the same bits.
    const Tensor alone = device_empty(loss.shape(), DType::f32);
    run_gpu(kCrossEntropy, activation,
            {.loss = alone,
             .dx = {},
             .dhead = {},
             .x = x_gpu,
             .head = &head_gpu,
             .targets = target_gpu,
             .scale = kScale});
    expect_same_bytes(to_host(alone), to_host(loss_gpu), "loss without gradients of " + what);
  }
};

// Sums of a few thousand products in another order, exponentials of other polynomials.
constexpr double kF32 = 1e-5;
// dz is rounded to bf16: 1.1e-3 in the root of the mean square.
constexpr double kBf16 = 3e-3;

TEST_F(CudaCrossEntropy, F32) {
  for (const Case& c : {Case{1, 1, 1},
                        {1, 2, 5},
                        {7, 13, 29},
                        {64, 129, 16},
                        {129, 1000, 64},
                        {37, 4099, 33, 8.0f}}) {
    expect_same(c, DType::f32, DType::f32, kF32);
  }
}

TEST_F(CudaCrossEntropy, Bf16) {
  for (const Case& c : {Case{1, 8, 8}, {7, 16, 24}, {130, 520, 64}, {300, 2048, 128, 8.0f}}) {
    expect_same(c, DType::bf16, DType::bf16, kBf16);
  }
}

// What tensor cores cannot take, and a head in f32, is multiplied in f32.
TEST_F(CudaCrossEntropy, OddVocabulariesAndOtherHeads) {
  expect_same({33, 515, 64}, DType::bf16, DType::bf16, kF32);
  expect_same({33, 512, 64}, DType::bf16, DType::f32, kF32);
  expect_same({33, 256, 128}, DType::bf16, DType::f8_e4m3, kBf16);
}

// More rows than have logits at a time (1024 for this vocabulary), the last chunk ragged.
TEST_F(CudaCrossEntropy, ChunksOfRows) {
  expect_same({1100, 32768, 16}, DType::bf16, DType::bf16, kBf16);
}

TEST_F(CudaCrossEntropy, RowsWithoutTargetsAreZeroAndNothingIsNothing) {
  const Tensor x = to_device(random({4, 16}, DType::bf16));
  const QuantTensor head = to_device(random_weight(64, 16, DType::bf16));
  Tensor none = Tensor::empty({4}, DType::i32);
  std::fill_n(none.data<std::int32_t>(), 4, -1);
  const Tensor target = to_device(none);
  const Tensor loss = device_empty({4}, DType::f32), dx = device_empty({4, 16}, DType::f32);
  const Tensor before = random({64, 16}, DType::f32), dhead = to_device(before);
  run_gpu(kCrossEntropy, DType::bf16,
          {.loss = loss, .dx = dx, .dhead = dhead, .x = x, .head = &head, .targets = target});
  expect_same_bytes(to_host(loss), Tensor::zeros({4}, DType::f32), "loss");
  expect_close(to_host(dx), Tensor::zeros({4, 16}, DType::f32), 0, 0, "dx");
  expect_close(to_host(dhead), before, 0, 0, "dhead");
  run_gpu(kCrossEntropy, DType::bf16,
          {.loss = loss.slice(0, 0),
           .dx = dx.slice(0, 0),
           .dhead = dhead,
           .x = x.slice(0, 0),
           .head = &head,
           .targets = target.slice(0, 0)});
}

// A logit that is not a number is seen in its own row's loss and nobody else's.
TEST_F(CudaCrossEntropy, NanStaysInItsRow) {
  for (const std::int64_t vocab : {64, 67}) {
    Tensor host = random({3, 16}, DType::f32);
    host.data<float>()[16] = std::nanf("");
    const Tensor x = to_device(host), target = to_device(Tensor::zeros({3}, DType::i32));
    const QuantTensor head = to_device(random_weight(vocab, 16, DType::f32));
    const Tensor loss = device_empty({3}, DType::f32);
    run_gpu(kCrossEntropy, DType::f32,
            {.loss = loss, .dx = {}, .dhead = {}, .x = x, .head = &head, .targets = target});
    const Tensor found = to_host(loss);
    EXPECT_TRUE(std::isfinite(value_at(found, 0)));
    EXPECT_TRUE(std::isnan(value_at(found, 1)));
    EXPECT_TRUE(std::isfinite(value_at(found, 2)));
  }
}

}  // namespace
}  // namespace hadal::test
