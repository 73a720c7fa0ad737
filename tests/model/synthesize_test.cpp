#include "model/synthesize.h"

#include <gmock/gmock.h>

#include <cstring>

#include "model/traffic.h"
#include "support/failing_file_system.h"
#include "support/model_fixture.h"
#include "support/safetensors_bytes.h"

namespace hadal::model {
namespace {

using test::ScratchDirectory;

Config tiny() {
  return load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
}
Config flash() {
  return load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
}

TEST(Slice, KeepsTheFirstLayers) {
  const Config c = slice_config(flash(), {.n_layers = 4});
  EXPECT_EQ(c.num_hidden_layers, 4);
  EXPECT_EQ(c.num_hash_layers, 3);
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_EQ(c.compress_ratios, (std::vector<std::int64_t>{0, 0, 4, 128}));
  EXPECT_EQ(c.hidden_size, 4096);
  const Config whole = slice_config(flash(), {.n_mtp = 1});
  EXPECT_EQ(to_json(whole), to_json(flash()));
  EXPECT_EQ(whole.layers, flash().layers);
}

TEST(Slice, TakesKindsByName) {
  const Config c = slice_config(
      flash(), {.kinds = {LayerKind::csa, LayerKind::hca, LayerKind::window}, .n_hash_layers = 0});
  EXPECT_EQ(c.compress_ratios, (std::vector<std::int64_t>{4, 128, 0}));
  EXPECT_FALSE(c.layer(0).hash_routed);
  // The tiny model's HCA ratio is 32.
  EXPECT_EQ(slice_config(tiny(), {.kinds = {LayerKind::hca}}).layer(0).compress_ratio, 32);
}

TEST(Slice, RefusesWhatTheConfigHasNot) {
  EXPECT_ERROR(slice_config(flash(), {.n_layers = 44}), ErrorCode::invalid_argument, "has 43");
  EXPECT_ERROR(slice_config(flash(), {.n_mtp = 2}), ErrorCode::invalid_argument, "has 1");
  EXPECT_ERROR(slice_config(flash(), {.n_layers = 2, .kinds = {LayerKind::csa}}),
               ErrorCode::invalid_argument, "1 layer kinds for 2 layers");
  EXPECT_ERROR(slice_config(flash(), {.n_layers = 2, .n_hash_layers = 3}),
               ErrorCode::invalid_argument, "3 hash layers");
}

TEST(Synthesize, BindsAndRunsToFiniteLogits) {
  const ScratchDirectory scratch;
  synthesize_checkpoint(FileSystem::real(), slice_config(tiny(), {.n_mtp = 1}), scratch / "m", 7,
                        {});
  const test::LoadedModel loaded((scratch / "m").string());
  EXPECT_TRUE(loaded.weights.warnings().empty());
  EXPECT_EQ(io::Checkpoint::open(scratch / "m").size(),
            stored_tensors(loaded.config, WeightFormat::published).size());
  std::vector<TokenId> ids(150);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i * 37 % 256);
  test::SequenceRun run(loaded, Numerics::official);
  double square = 0;
  const std::vector<float> logits = run.logits(ids);
  for (const float x : logits) {
    ASSERT_TRUE(std::isfinite(x));
    square += static_cast<double>(x) * static_cast<double>(x);
  }
  EXPECT_GT(square, 0);
}

// The spread of the weights is initializer_range: what quantising real ones would give.
TEST(Synthesize, WeightsHaveTheConfigsSpread) {
  const ScratchDirectory scratch;
  synthesize_checkpoint(FileSystem::real(), tiny(), scratch / "m", 7, {});
  const test::LoadedModel loaded((scratch / "m").string());
  for (const char* name : {"layers.2.attn.wq_b.weight", "layers.2.ffn.experts.3.w2.weight"}) {
    const QuantTensor& w = loaded.weights.linear(name);
    std::vector<float> values(static_cast<std::size_t>(w.data.numel()));
    dequantize_rows(w, 0, w.rows(), values.data());
    double square = 0;
    for (const float x : values) square += static_cast<double>(x) * static_cast<double>(x);
    const double spread = std::sqrt(square / static_cast<double>(values.size()));
    // 16,384 draws: their spread is within 2 % (4 sigma); E2M1 rounding and saturation some more.
    EXPECT_NEAR(spread / loaded.config.initializer_range, 1.0, 0.05) << name;
  }
}

TEST(Synthesize, SeedDecidesTheBytes) {
  const ScratchDirectory scratch;
  for (const auto& [name, seed] : {std::pair{"a", 1u}, {"b", 1u}, {"c", 2u}}) {
    synthesize_checkpoint(FileSystem::real(), tiny(), scratch / name, seed, {});
  }
  const auto bytes = [&](const char* name) {
    return read_text(scratch / name / "model-00001-of-00001.safetensors");
  };
  EXPECT_TRUE(bytes("a") == bytes("b"));
  EXPECT_FALSE(bytes("a") == bytes("c"));
}

TEST(Synthesize, FullDiskLeavesNothing) {
  const ScratchDirectory scratch;
  for (const int limit : {0, 2, 40}) {
    test::FailingFileSystem full(limit);
    EXPECT_ERROR(synthesize_checkpoint(full, tiny(), scratch / "m", 7, {}), ErrorCode::io,
                 "No space left");
    EXPECT_EQ(scratch.n_entries(), 0u);
  }
}

// Counted from the file: everything but the MTP block and the experts and rows not chosen.
TEST(DecodeTraffic, ReadsWhatOneTokenNeeds) {
  const test::LoadedModel loaded(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  const Config& c = loaded.config;
  const io::Checkpoint file = io::Checkpoint::open(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  double bytes = 0;
  for (const std::string& name : file.names()) {
    if (name.starts_with("mtp.") || name.ends_with("tid2eid")) continue;
    const auto n = static_cast<double>(file.find(name)->nbytes);
    const double part = name.find(".experts.") != std::string::npos ? 2.0 / 8
                        : name == "embed.weight"                    ? 1.0 / 256
                                                                    : 1.0;
    bytes += n * part;
  }
  for (std::int64_t l = 0; l < c.num_hash_layers; ++l) {
    bytes += 4.0 * static_cast<double>(c.num_experts_per_tok);  // one row of tid2eid, i32 in memory
  }
  const DecodeTraffic traffic = decode_traffic(c, loaded.weights, Numerics::fp32, 100);
  EXPECT_DOUBLE_EQ(traffic.weight_bytes, bytes);
  // f32 rows: 5 windows, and CSA (25 entries or index_topk of them, 25 keys) twice, HCA (3) once.
  const std::int64_t window = std::min<std::int64_t>(100, c.sliding_window);
  const std::int64_t rows = 5 * window + 2 * std::min<std::int64_t>(25, c.index_topk) + 3;
  EXPECT_DOUBLE_EQ(traffic.kv_bytes,
                   static_cast<double>(4 * rows * c.head_dim + 4 * 2 * 25 * c.index_head_dim));
}

}  // namespace
}  // namespace hadal::model
