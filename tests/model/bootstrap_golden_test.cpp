// tests/golden/bootstrap: what another implementation computed from the embedded model's bf16
// original. The original is too large for the repository; configure with
// -DHADAL_BOOTSTRAP_BF16_DIR=... to compare with it. The shipped FP4+FP8 model is always checked.
#include "support/model_fixture.h"

namespace hadal::test {
namespace {

const io::SafetensorsFile& expected() {
  static const auto file =
      io::SafetensorsFile::open(HADAL_TEST_DATA_DIR "/golden/bootstrap/expected.safetensors");
  return file;
}

// Mean loss in nats of the first n targets of the held-out text.
double held_out_loss(const LoadedModel& loaded, Numerics numerics, std::size_t n,
                     std::vector<float>* losses = nullptr) {
  const std::vector<TokenId> ids = ids_of(expected().tensor("heldout.ids"));
  SequenceRun run(loaded, numerics);
  const auto vocab = static_cast<std::size_t>(loaded.config.vocab_size);
  double total = 0;
  for (std::size_t begin = 0; begin < n; begin += 512) {
    const std::size_t count = std::min<std::size_t>(512, n - begin);
    const std::vector<float> logits = run.logits(std::span(ids).subspan(begin, count));
    for (std::size_t t = 0; t < count; ++t) {
      const float* row = logits.data() + t * vocab;
      double sum = 0;
      for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
      const double loss = std::log(sum) - static_cast<double>(row[ids[begin + t + 1]]);
      total += loss;
      if (losses != nullptr) losses->push_back(static_cast<float>(loss));
    }
  }
  return total / static_cast<double>(n);
}

#ifdef HADAL_BOOTSTRAP_BF16_DIR
const LoadedModel& original() {
  static const LoadedModel loaded(HADAL_BOOTSTRAP_BF16_DIR);
  return loaded;
}

TEST(BootstrapOriginal, GreedyContinuationsAreEqualInFp32) {
  for (const std::string name : {"plain", "chat", "tool", "retrieval"}) {
    const std::vector<TokenId> prompt = ids_of(expected().tensor(name + ".input_ids"));
    const std::vector<TokenId> want = ids_of(expected().tensor(name + ".greedy"));
    SequenceRun run(original(), Numerics::fp32);
    std::vector<float> logits = run.last_logits(prompt);
    EXPECT_LE(difference(logits, values(expected().tensor(name + ".last_logits"))).max_abs, 2e-4)
        << name;
    std::vector<TokenId> got;
    while (got.size() < want.size()) {
      got.push_back(static_cast<TokenId>(argmax(logits.data(), original().config.vocab_size)));
      logits = run.last_logits(std::span(got).last(1));
    }
    EXPECT_EQ(got, want) << name;
  }
}

TEST(BootstrapOriginal, HeldOutLoss) {
  std::vector<float> losses;
  const double mean = held_out_loss(original(), Numerics::fp32, 4096, &losses);
  const std::vector<float> want = values(expected().tensor("heldout.nll"));
  double want_mean = 0;
  for (const float l : want) want_mean += static_cast<double>(l) / static_cast<double>(want.size());
  std::printf("bf16 original, fp32 numerics: %.6f nats, reference %.6f\n", mean, want_mean);
  EXPECT_NEAR(mean, want_mean, 1e-3);
  // fp32 noise may flip a near-tie of the router or of the indexer, which moves single targets.
  int moved = 0;
  for (std::size_t i = 0; i < want.size(); ++i) moved += std::fabs(losses[i] - want[i]) > 1e-3f;
  std::printf("targets that moved by more than 1e-3: %d of 4096\n", moved);
  EXPECT_LE(moved, 40);
  std::printf("bf16 original, official numerics: %.6f nats\n",
              held_out_loss(original(), Numerics::official, 4096));
}
#endif

const LoadedModel& shipped() {
  static const LoadedModel loaded(HADAL_SOURCE_DIR "/models/hadal-bootstrap");
  return loaded;
}

TEST(BootstrapShipped, HeldOutLossOfTheQuantisedModel) {
  double want = 0;
  const std::vector<float> reference = values(expected().tensor("heldout.nll"));
  for (std::size_t i = 0; i < 1024; ++i) want += static_cast<double>(reference[i]) / 1024;
  const double fp32 = held_out_loss(shipped(), Numerics::fp32, 1024);
  const double official = held_out_loss(shipped(), Numerics::official, 1024);
  std::printf(
      "first 1024 targets: bf16 original %.4f nats, FP4+FP8 in fp32 numerics %.4f, in "
      "official numerics %.4f\n",
      want, fp32, official);
  // Post-training rounding of 28 M weights to FP4 costs about 0.05 nats; losing the thread
  // altogether costs whole nats.
  EXPECT_NEAR(fp32, want, 0.15);
  EXPECT_NEAR(official, want, 0.15);
}

TEST(BootstrapShipped, CallsTheToolInTheRightForm) {
  const std::vector<TokenId> prompt = ids_of(expected().tensor("tool.input_ids"));
  const std::vector<TokenId> reference = ids_of(expected().tensor("tool.greedy"));
  SequenceRun run(shipped(), Numerics::official);
  std::vector<float> logits = run.last_logits(prompt);
  std::vector<TokenId> got;
  while (got.size() < 64 && (got.empty() || got.back() != 1)) {
    got.push_back(static_cast<TokenId>(argmax(logits.data(), shipped().config.vocab_size)));
    logits = run.last_logits(std::span(got).last(1));
  }
  // Up to the end token the whole DSML block is the one that the original writes.
  const auto end = std::find(reference.begin(), reference.end(), 1);
  EXPECT_EQ(got, std::vector<TokenId>(reference.begin(), end + 1));
}

// The released window and ratios: decoding across 3/4, 127/128, 255/256 equals prefill, in bytes.
TEST(BootstrapShipped, DecodingEqualsPrefillAtEveryBoundary) {
  const std::vector<TokenId> ids = ids_of(expected().tensor("heldout.ids"));
  const std::span<const TokenId> text = std::span(ids).first(300);
  SequenceRun whole(shipped(), Numerics::official), decoded(shipped(), Numerics::official);
  const std::vector<float> want = whole.logits(text);
  std::vector<float> got;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::vector<float> row = decoded.logits(text.subspan(i, 1));
    got.insert(got.end(), row.begin(), row.end());
  }
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace hadal::test
