// tests/golden/hf-tiny: the Hugging Face implementation in fp32, its names and config dialect.
#include "support/model_fixture.h"

namespace hadal::test {
namespace {

constexpr const char* kDirectory = HADAL_TEST_DATA_DIR "/golden/hf-tiny";

const LoadedModel& tiny() {
  static const LoadedModel loaded(kDirectory);
  return loaded;
}
const io::SafetensorsFile& expected() {
  static const auto file =
      io::SafetensorsFile::open(std::string(kDirectory) + "/expected.safetensors");
  return file;
}

// fp32 sums in another order through five layers: measured 3.3e-6 by an independent
// implementation, on logits of rms 1.
constexpr double kTolerance = 5e-5;

TEST(HfTinyGolden, FullSequenceLogits) {
  const Tensor input = expected().tensor("input_ids");
  std::vector<float> got;
  for (std::int64_t row = 0; row < 2; ++row) {
    SequenceRun run(tiny(), Numerics::fp32);
    const std::vector<float> logits = run.logits(ids_of(input, row));
    got.insert(got.end(), logits.begin(), logits.end());
  }
  EXPECT_LE(difference(got, values(expected().tensor("logits"))).max_abs, kTolerance);
}

TEST(HfTinyGolden, HiddenStatesBeforeEveryLayerAndAfterTheNorm) {
  SequenceRun run(tiny(), Numerics::fp32);
  const std::vector<TokenId> ids = ids_of(expected().tensor("input_ids"), 0);
  const Tensor streams = run.forward(ids, [&](std::int64_t layer, const Tensor& after) {
    if (layer + 1 >= tiny().config.num_hidden_layers) return;
    const Tensor want = expected().tensor("hidden" + std::to_string(layer + 1));
    EXPECT_LE(difference(values(after), values(want)).max_abs, kTolerance) << "layer " << layer;
  });
  const Tensor collapsed = tiny().model.collapse(run.ctx(), streams);
  EXPECT_LE(difference(values(collapsed), values(expected().tensor("hidden5"))).max_abs,
            kTolerance);
}

TEST(HfTinyGolden, DecodesTokenByToken) {
  const Tensor input = expected().tensor("input_ids");
  std::vector<float> got;
  for (std::int64_t row = 0; row < 2; ++row) {
    SequenceRun run(tiny(), Numerics::fp32);
    const std::vector<TokenId> ids = ids_of(input, row);
    (void)run.forward(std::span(ids).first(70));
    for (std::size_t i = 70; i < ids.size(); ++i) {
      const std::vector<float> logits = run.logits(std::span(ids).subspan(i, 1));
      got.insert(got.end(), logits.begin(), logits.end());
    }
  }
  EXPECT_LE(difference(got, values(expected().tensor("decode.logits"))).max_abs, kTolerance);
}

TEST(HfTinyGolden, GreedyTokensAreEqual) {
  const std::vector<TokenId> want = ids_of(expected().tensor("greedy"));
  SequenceRun run(tiny(), Numerics::fp32);
  std::vector<TokenId> got(want.begin(), want.begin() + 40);
  std::vector<float> logits = run.last_logits(got);
  while (got.size() < want.size()) {
    got.push_back(static_cast<TokenId>(argmax(logits.data(), 256)));
    logits = run.last_logits(std::span(got).last(1));
  }
  EXPECT_EQ(got, want);
}

TEST(HfTinyGolden, LossOfBothSequences) {
  const Tensor input = expected().tensor("input_ids");
  double total = 0;
  int n = 0;
  for (std::int64_t row = 0; row < 2; ++row) {
    SequenceRun run(tiny(), Numerics::fp32);
    const std::vector<TokenId> ids = ids_of(input, row);
    const std::vector<float> logits = run.logits(ids);
    for (std::size_t t = 0; t + 1 < ids.size(); ++t, ++n) {
      const float* l = logits.data() + t * 256;
      double sum = 0;
      for (int v = 0; v < 256; ++v) sum += std::exp(static_cast<double>(l[v]));
      total += std::log(sum) - static_cast<double>(l[ids[t + 1]]);
    }
  }
  EXPECT_NEAR(total / n, values(expected().tensor("loss"))[0], 1e-5);
}

}  // namespace
}  // namespace hadal::test
