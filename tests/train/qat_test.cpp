// The gate of quantisation-aware training: what the trainer's forward pass computes is what the
// engine computes from the exported checkpoint, to the bit.  Source: training.md §3.5.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/rng.h"
#include "model/in_batch_kv.h"
#include "support/context.h"
#include "support/failing_file_system.h"
#include "support/model_fixture.h"
#include "train/initialise.h"
#include "train/working_weights.h"

namespace hadal::train {
namespace {

using model::WeightFormat;

std::vector<TokenId> some_tokens(std::int64_t n, std::int64_t vocab_size) {
  Rng rng(23);
  std::vector<TokenId> ids(static_cast<std::size_t>(n));
  for (TokenId& id : ids) {
    id = static_cast<TokenId>(rng.next_below(static_cast<std::uint32_t>(vocab_size)));
  }
  return ids;
}

std::vector<std::int64_t> all_rows(std::int64_t n) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// As a trainer runs it: from memory, the whole sequence at once, histories of one step.
std::vector<float> trainer_logits(const ParameterStore& store, const WorkingWeights& weights,
                                  Numerics numerics, std::span<const TokenId> ids) {
  test::TestContext t(numerics);
  const model::Model model(store.config(), weights.bind());
  model::TokenBatch batch;
  batch.add(ids, 0, 0);
  model::InBatchKv kv(store.config(), numerics, t.allocator);
  const Tensor streams = model.forward(t.ctx, batch, kv);
  return test::values(model.logits(t.ctx, streams, all_rows(std::ssize(ids))));
}

class QatGate : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(QatGate, TheExportedModelComputesWhatTheTrainerComputed) {
  const Numerics numerics = GetParam() == WeightFormat::f32 ? Numerics::fp32 : Numerics::official;
  const model::Config config = model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  ThreadPool pool(2);
  const ParameterStore store(config);
  initialise(pool, store, 7);
  // Weights as training leaves them: norms off 1, biases off 0, tiles of very different sizes.
  Rng rng(31);
  for (const Parameter& p : store.parameters()) {
    if (p.value.dtype() != DType::f32) continue;
    auto* x = p.value.data<float>();
    for (std::int64_t i = 0; i < p.value.numel(); ++i) x[i] += 0.02f * rng.next_normal();
    if (p.info.role != model::WeightRole::expert) continue;
    for (std::int64_t tile = 0; tile < p.value.numel() / 32; ++tile) {
      if (rng.next_below(8) != 0) continue;
      const float factor = rng.next_below(2) == 0 ? 0.0f : 0x1p-14f;
      for (std::int64_t i = 0; i < 32; ++i) x[tile * 32 + i] *= factor;
    }
  }
  WorkingWeights weights(store, GetParam(), pool);
  if (GetParam() == WeightFormat::published) {
    EXPECT_GT(weights.refresh(pool).n_lifted, 0);
  }
  const std::vector<TokenId> ids = some_tokens(150, config.vocab_size);
  const std::vector<float> trained = trainer_logits(store, weights, numerics, ids);
  ASSERT_EQ(trained.size(), ids.size() * static_cast<std::size_t>(config.vocab_size));

  const test::ScratchDirectory scratch;
  io::CheckpointWriter writer(FileSystem::real(), scratch / "model", weights.declarations(), {});
  weights.write(writer);
  writer.finish();
  const test::LoadedModel loaded((scratch / "model").string());
  test::SequenceRun engine(loaded, numerics);
  // A prompt in two chunks, then token by token.
  std::vector<float> served;
  for (const std::int64_t n : {67, 70, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
    const auto piece = std::span(ids).subspan(static_cast<std::size_t>(engine.position()),
                                              static_cast<std::size_t>(n));
    const std::vector<float> logits = engine.logits(piece);
    served.insert(served.end(), logits.begin(), logits.end());
  }
  ASSERT_EQ(engine.position(), std::ssize(ids));
  ASSERT_EQ(std::memcmp(trained.data(), served.data(), trained.size() * sizeof(float)), 0);
  // The logits say something: the gate would not notice a model of zeros.
  EXPECT_NE(*std::min_element(trained.begin(), trained.end()),
            *std::max_element(trained.begin(), trained.end()));
}

INSTANTIATE_TEST_SUITE_P(Formats, QatGate,
                         ::testing::Values(WeightFormat::published, WeightFormat::fp8,
                                           WeightFormat::bf16, WeightFormat::f32),
                         [](const auto& f) { return std::string(model::to_string(f.param)); });

// That the rounding of the trainer is the one that counts: masters in plain bf16 compute something
// else.
TEST(QatGate, ThePublishedFormatIsNoticed) {
  const model::Config config = model::load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  ThreadPool pool(2);
  const ParameterStore store(config);
  initialise(pool, store, 7);
  const std::vector<TokenId> ids = some_tokens(40, config.vocab_size);
  const auto logits = [&](WeightFormat format) {
    return trainer_logits(store, WorkingWeights(store, format, pool), Numerics::official, ids);
  };
  EXPECT_NE(logits(WeightFormat::published), logits(WeightFormat::bf16));
}

}  // namespace
}  // namespace hadal::train
