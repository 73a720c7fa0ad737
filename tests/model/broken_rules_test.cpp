// The golden data can tell a right rounding from a wrong one: with one rule broken on purpose the
// one-layer-at-a-time test of official-tiny fails in the layers that the rule concerns.
#include <cstring>

#include "support/model_fixture.h"

#include "kernels/hyper_connection.h"
#include "kernels/indexer.h"
#include "kernels/kv_rows.h"
#include "kernels/moe.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sparse_attention.h"

namespace hadal::test {
namespace {

constexpr KernelKey kBf16{DeviceKind::cpu, DType::bf16};
constexpr int kWantedRows = 105;  // what official_tiny_golden_test asks for

const LoadedModel& tiny() {
  static const LoadedModel loaded(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  return loaded;
}

// Bit-exact rows of every layer, each fed with the golden state of the layer before.
std::vector<int> exact_rows(const KernelRegistry& registry) {
  static const auto expected =
      io::SafetensorsFile::open(HADAL_TEST_DATA_DIR "/golden/official-tiny/expected.safetensors");
  TestContext t(Numerics::official, 2, registry);
  cache::PagedKv kv(tiny().config, {});
  const std::vector<TokenId> ids = ids_of(expected.tensor("input_ids"), 0);
  model::TokenBatch batch;
  batch.add(std::span(ids).first(150), 0, kv.open());
  const model::Step step = tiny().model.make_step(t.ctx, batch, kv);
  Tensor streams = tiny().model.embed(t.ctx, step);
  std::vector<int> rows;
  for (std::int64_t layer = 0; layer < tiny().config.num_hidden_layers; ++layer) {
    const Tensor want = expected.tensor("prefill.layer" + std::to_string(layer) + ".hidden");
    const Tensor got = tiny().model.layer(layer).forward(t.ctx, step, streams);
    rows.push_back(
        equal_rows(values(got), values(want), static_cast<std::size_t>(tiny().config.hc_dim())));
    streams = to_dtype(want.reshape({150, tiny().config.hc_mult, tiny().config.hidden_size}),
                       DType::bf16);
  }
  return rows;
}

KernelRegistry sound() {
  return TestContext::registry();
}

// A registry in which one kernel is wrapped by something wrong.
template <class Args>
KernelRegistry broken(KernelName<Args> name, void (*wrong)(Stream&, const Args&)) {
  KernelRegistry registry = sound();
  registry.add(name, kBf16, wrong);
  return registry;
}
template <class Args>
void call_sound(KernelName<Args> name, Stream& stream, const Args& args) {
  TestContext::registry().find(name, kBf16)(stream, args);
}

TEST(BrokenRules, TheSoundRegistryPasses) {
  for (const int rows : exact_rows(sound())) EXPECT_GE(rows, kWantedRows);
}

TEST(BrokenRules, WindowOfOneMoreToken) {
  const auto rows = exact_rows(broken<SparseAttentionArgs>(
      kSparseAttention, +[](Stream& stream, const SparseAttentionArgs& args) {
        SparseAttentionArgs wrong = args;
        wrong.window += 1;
        // The ring is as long as the window; within one prompt nothing reads beyond it.
        call_sound(kSparseAttention, stream, wrong);
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

TEST(BrokenRules, NoSink) {
  const auto rows = exact_rows(broken<SparseAttentionArgs>(
      kSparseAttention, +[](Stream& stream, const SparseAttentionArgs& args) {
        std::vector<float> none(static_cast<std::size_t>(args.sinks.numel()), -1e30f);
        SparseAttentionArgs wrong = args;
        wrong.sinks = {reinterpret_cast<std::byte*>(none.data()), args.sinks.shape(), DType::f32};
        call_sound(kSparseAttention, stream, wrong);
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

TEST(BrokenRules, HeadNormInOneRounding) {
  const auto rows = exact_rows(broken<HeadNormArgs>(
      kHeadNorm, +[](Stream& stream, const HeadNormArgs& args) {
        Tensor x = to_dtype(args.x, DType::f32);
        TestContext::registry().find(kHeadNorm, {DeviceKind::cpu, DType::f32})(
            stream, HeadNormArgs{.x = x, .eps = args.eps});
        const Tensor back = to_dtype(x, DType::bf16);
        std::memcpy(args.x.bytes(), back.bytes(), back.nbytes());
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

TEST(BrokenRules, MixingMatrixTransposed) {
  const auto rows = exact_rows(broken<HcPostArgs>(
      kHcPost, +[](Stream& stream, const HcPostArgs& args) {
        const std::int64_t n = args.comb.dim(1);
        Tensor turned = Tensor::empty(args.comb.shape(), DType::f32);
        for (std::int64_t t = 0; t < args.comb.dim(0); ++t) {
          for (std::int64_t j = 0; j < n; ++j) {
            for (std::int64_t k = 0; k < n; ++k) {
              turned.data<float>()[(t * n + k) * n + j] =
                  args.comb.data<const float>()[(t * n + j) * n + k];
            }
          }
        }
        HcPostArgs wrong = args;
        wrong.comb = turned;
        call_sound(kHcPost, stream, wrong);
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

TEST(BrokenRules, CosAndSinInBf16) {
  const auto rows = exact_rows(broken<RopeArgs>(
      kRope, +[](Stream& stream, const RopeArgs& args) {
        RopeArgs wrong = args;
        const Tensor rounded = to_dtype(to_dtype(args.table, DType::bf16), DType::f32);
        wrong.table = rounded;
        call_sound(kRope, stream, wrong);
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

TEST(BrokenRules, SharedExpertNotClamped) {
  const auto rows = exact_rows(broken<MoeExpertsArgs>(
      kMoeExperts, +[](Stream& stream, const MoeExpertsArgs& args) {
        MoeExpertsArgs wrong = args;
        wrong.shared_swiglu_limit = 0;
        call_sound(kMoeExperts, stream, wrong);
      }));
  for (const int r : rows) EXPECT_LT(r, kWantedRows);
}

// Compressed layers only: the indexer chooses worse entries without its rotation.
TEST(BrokenRules, NoHadamardRotation) {
  const auto rows = exact_rows(
      broken<HadamardArgs>(kHadamard, +[](Stream&, const HadamardArgs&) { /* left as it is */ }));
  // Prompts of 150 tokens select only in their last third, so a CSA layer cannot lose more.
  const auto whole = exact_rows(sound());
  for (const std::size_t layer : {0U, 1U, 3U}) EXPECT_EQ(rows[layer], whole[layer]);
  for (const std::size_t layer : {2U, 4U}) EXPECT_LT(rows[layer], whole[layer] - 20);
}

}  // namespace
}  // namespace hadal::test
