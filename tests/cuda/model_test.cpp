// A whole model on the GPU: against the CPU, and against itself in other batches and chunks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "engine/generate.h"
#include "kernels/cpu/isa.h"

namespace hadal::engine {
namespace {

const char* kTiny = HADAL_TEST_DATA_DIR "/golden/official-tiny";
const char* kBootstrap = HADAL_SOURCE_DIR "/models/hadal-bootstrap";

std::vector<TokenId> some_tokens(std::size_t n, std::int64_t vocab, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) {
    id = static_cast<TokenId>(2 + rng() % static_cast<std::uint32_t>(vocab - 2));
  }
  return ids;
}

// A model, where it runs, and a history.
class Place {
 public:
  Place(const char* directory, std::optional<int> gpu, Numerics numerics)
      : runtime_(0, gpu),
        loaded_(load_model(directory, {.stream = &runtime_.stream()})),
        ctx_(runtime_.context(numerics)),
        kv_(loaded_->config,
            {.numerics = numerics, .page_tokens = 256, .memory = runtime_.cache_memory()}) {}

  std::int64_t open() { return kv_.open(); }
  [[nodiscard]] std::int64_t vocab() const { return loaded_->config.vocab_size; }

  // Logits of every token, on the host.
  Tensor forward(const model::TokenBatch& batch) {
    const Tensor streams = loaded_->model.forward(ctx_, batch, kv_);
    std::vector<std::int64_t> rows(static_cast<std::size_t>(batch.n_tokens()));
    std::iota(rows.begin(), rows.end(), 0);
    const Tensor logits = ctx_.to_host(loaded_->model.logits(ctx_, streams, rows));
    Tensor copy = Tensor::empty(logits.shape(), logits.dtype());
    std::copy_n(logits.bytes(), logits.nbytes(), copy.bytes());
    return copy;
  }
  // One text in pieces of these lengths.
  Tensor in_chunks(std::span<const TokenId> tokens, std::size_t chunk) {
    const std::int64_t slot = open();
    Tensor all = Tensor::empty({std::ssize(tokens), vocab()}, DType::f32);
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
      const std::size_t n = std::min(chunk, tokens.size() - at);
      model::TokenBatch batch;
      batch.add(tokens.subspan(at, n), static_cast<std::int64_t>(at), slot);
      const Tensor part = forward(batch);
      std::copy_n(part.data<float>(), part.numel(),
                  all.data<float>() + static_cast<std::int64_t>(at) * vocab());
    }
    return all;
  }

 private:
  Runtime runtime_;
  std::unique_ptr<LoadedModel> loaded_;
  ExecContext ctx_;
  cache::PagedKv kv_;
};

class CudaModel : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const cuda::DeviceList list = cuda::list_devices();
    if (list.devices.empty()) GTEST_SKIP() << list.why_none;
  }
};

double relative_l2(const Tensor& got, const Tensor& want) {
  double error = 0, norm = 0;
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    const double g = got.data<float>()[i], w = want.data<float>()[i];
    error += (g - w) * (g - w), norm += w * w;
  }
  return std::sqrt(error / norm);
}

void expect_same(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape());
  for (std::int64_t i = 0; i < want.numel(); ++i) {
    if (std::bit_cast<std::uint32_t>(got.data<float>()[i]) ==
        std::bit_cast<std::uint32_t>(want.data<float>()[i])) {
      continue;
    }
    FAIL() << what << ": row " << i / want.dim(1) << " logit " << i % want.dim(1) << " is "
           << got.data<float>()[i] << ", wanted " << want.data<float>()[i];
  }
}

// fp32 numerics: sums in other orders, a few layers of them; unit roundoff 2^-24 grown by the
// length of sums and the depth. A choice of experts or entries that is a near tie may still go the
// other way; these models have none within 1e-5.
TEST_P(CudaModel, AgreesWithTheCpuInFp32) {
  Place cpu(GetParam(), std::nullopt, Numerics::fp32), gpu(GetParam(), 0, Numerics::fp32);
  const auto tokens = some_tokens(301, cpu.vocab(), 5);
  EXPECT_LT(relative_l2(gpu.in_chunks(tokens, 301), cpu.in_chunks(tokens, 301)), 1e-4);
}

// official numerics: every layer rounds to bf16, E4M3 and E2M1, so a last bit of an f32 sum is
// sometimes a whole step of these for one element, and grows from there. How far that leads is
// measured: the CPU's instruction sets sum in different orders, too. The GPU may be twice as far
// from the CPU as two of those are from each other, or as far as the CPU's golden test lets it be
// from the published code.
TEST_P(CudaModel, AgreesWithTheCpuInOfficialNumerics) {
  using kernels::cpu::Isa;
  Place cpu(GetParam(), std::nullopt, Numerics::official), gpu(GetParam(), 0, Numerics::official);
  const auto tokens = some_tokens(301, cpu.vocab(), 6);
  const Tensor want = cpu.in_chunks(tokens, 301);
  kernels::cpu::set_isa(Isa::portable);
  const double spread = relative_l2(cpu.in_chunks(tokens, 301), want);
  kernels::cpu::set_isa(kernels::cpu::best_isa());
  const double distance = relative_l2(gpu.in_chunks(tokens, 301), want);
  std::printf("GPU to CPU %.4f, CPU to CPU %.4f\n", distance, spread);
  EXPECT_LT(distance, std::max(0.05, 2 * spread));
}

TEST_P(CudaModel, PrefillChunksAndDecodingGiveTheSameBytes) {
  Place gpu(GetParam(), 0, Numerics::official);
  const auto tokens = some_tokens(301, gpu.vocab(), 7);
  const Tensor whole = gpu.in_chunks(tokens, 301);
  expect_same(gpu.in_chunks(tokens, 301), whole, "the same again");
  expect_same(gpu.in_chunks(tokens, 64), whole, "chunks of 64");
  expect_same(gpu.in_chunks(tokens, 37), whole, "chunks of 37");
  expect_same(gpu.in_chunks(tokens, 1), whole, "token by token");
}

TEST_P(CudaModel, ABatchGivesTheBytesThatEachTextGetsAlone) {
  Place gpu(GetParam(), 0, Numerics::official);
  std::vector<std::vector<TokenId>> texts;
  std::vector<Tensor> alone;
  model::TokenBatch batch;
  for (std::uint32_t i = 0; i < 20; ++i) {
    texts.push_back(some_tokens(1 + i * 17, gpu.vocab(), 100 + i));
    alone.push_back(gpu.in_chunks(texts.back(), texts.back().size()));
  }
  for (const auto& text : texts) batch.add(text, 0, gpu.open());
  const Tensor together = gpu.forward(batch);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Tensor rows = together.slice(batch.sequences[i].begin, batch.sequences[i].end);
    expect_same(rows, alone[i], "text " + std::to_string(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaModel, ::testing::Values(kTiny, kBootstrap),
                         [](const auto& p) { return p.index == 0 ? "tiny" : "bootstrap"; });

}  // namespace
}  // namespace hadal::engine
