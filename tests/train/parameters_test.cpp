#include "train/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>

#include "core/error.h"
#include "train/small_config.h"

namespace hadal::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

model::Config flash() {
  return model::load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
}

// "layers.7.ffn.experts.12.w1.weight" -> "layers.#.ffn.experts.#.w1.weight".
std::string pattern_of(const std::string& name) {
  static const std::regex kNumber("\\.[0-9]+\\.");
  return std::regex_replace(name, kNumber, ".#.");
}

std::set<std::string> patterns(const std::vector<ParameterInfo>& layout, ParameterGroup group) {
  std::set<std::string> found;
  for (const ParameterInfo& p : layout) {
    if (p.group == group && !p.name.starts_with("mtp.")) found.insert(pattern_of(p.name));
  }
  return found;
}

const ParameterInfo& named(const std::vector<ParameterInfo>& layout, const std::string& name) {
  for (const ParameterInfo& p : layout) {
    if (p.name == name) return p;
  }
  ADD_FAILURE() << "no " << name;
  return layout.front();
}

std::int64_t count(const std::vector<ParameterInfo>& layout, ParameterGroup group) {
  std::int64_t n = 0;
  for (const ParameterInfo& p : layout) n += p.group == group ? 1 : 0;
  return n;
}

// 43 layers (2 window, 21 CSA, 20 HCA) and an MTP block, counted by hand from training.md §1.2.
TEST(ParameterLayout, FlashHasTheGroupsOfTheTable) {
  const std::vector<ParameterInfo> layout = parameter_layout(flash());
  // A block: 5 attention, gate, 3 shared, 768 experts, 2 mHC. CSA 6 more, HCA 2. MTP 2 and a head.
  EXPECT_EQ(count(layout, ParameterGroup::muon), 44 * 779 + 21 * 6 + 20 * 2 + 3 + 1);
  // A block: 4 norms, sinks, 4 of mHC. CSA 2 norms and 2 ape, HCA one each. MTP 3 norms and 2 of
  // its head; the last norm, the head's 2, embedding and head.
  EXPECT_EQ(count(layout, ParameterGroup::adamw), 44 * 9 + 21 * 4 + 20 * 2 + 5 + 3 + 2);
  EXPECT_EQ(count(layout, ParameterGroup::frozen), 44);

  EXPECT_THAT(
      patterns(layout, ParameterGroup::muon),
      ElementsAre(
          "hc_head_fn", "layers.#.attn.compressor.wgate.weight",
          "layers.#.attn.compressor.wkv.weight", "layers.#.attn.indexer.compressor.wgate.weight",
          "layers.#.attn.indexer.compressor.wkv.weight",
          "layers.#.attn.indexer.weights_proj.weight", "layers.#.attn.indexer.wq_b.weight",
          "layers.#.attn.wkv.weight", "layers.#.attn.wo_a.weight", "layers.#.attn.wo_b.weight",
          "layers.#.attn.wq_a.weight", "layers.#.attn.wq_b.weight",
          "layers.#.ffn.experts.#.w1.weight", "layers.#.ffn.experts.#.w2.weight",
          "layers.#.ffn.experts.#.w3.weight", "layers.#.ffn.gate.weight",
          "layers.#.ffn.shared_experts.w1.weight", "layers.#.ffn.shared_experts.w2.weight",
          "layers.#.ffn.shared_experts.w3.weight", "layers.#.hc_attn_fn", "layers.#.hc_ffn_fn"));
  EXPECT_THAT(
      patterns(layout, ParameterGroup::adamw),
      ElementsAre("embed.weight", "hc_head_base", "hc_head_scale", "head.weight",
                  "layers.#.attn.attn_sink", "layers.#.attn.compressor.ape",
                  "layers.#.attn.compressor.norm.weight", "layers.#.attn.indexer.compressor.ape",
                  "layers.#.attn.indexer.compressor.norm.weight", "layers.#.attn.kv_norm.weight",
                  "layers.#.attn.q_norm.weight", "layers.#.attn_norm.weight",
                  "layers.#.ffn_norm.weight", "layers.#.hc_attn_base", "layers.#.hc_attn_scale",
                  "layers.#.hc_ffn_base", "layers.#.hc_ffn_scale", "norm.weight"));
  EXPECT_THAT(patterns(layout, ParameterGroup::frozen),
              ElementsAre("layers.#.ffn.gate.bias", "layers.#.ffn.gate.tid2eid"));
  EXPECT_EQ(named(layout, "mtp.0.e_proj.weight").group, ParameterGroup::muon);
  EXPECT_EQ(named(layout, "mtp.0.enorm.weight").group, ParameterGroup::adamw);
}

TEST(ParameterLayout, OnlyMatricesEmbeddingAndHeadDecay) {
  for (const ParameterInfo& p : parameter_layout(flash())) {
    const bool decays =
        p.group == ParameterGroup::muon || p.name == "embed.weight" || p.name == "head.weight";
    EXPECT_EQ(p.decays, decays) << p.name;
  }
}

TEST(ParameterLayout, IdsAreTheFileOrder) {
  const model::Config c = flash();
  const std::vector<model::ExpectedWeight> weights = model::expected_weights(c);
  const std::vector<ParameterInfo> layout = parameter_layout(c);
  ASSERT_EQ(layout.size(), weights.size());
  for (std::size_t i = 0; i < layout.size(); ++i) {
    EXPECT_EQ(layout[i].id, i + 1);
    EXPECT_EQ(layout[i].name, weights[i].name);
    EXPECT_EQ(layout[i].shape, weights[i].shape);
  }
}

TEST(ParameterLayout, IndependentMatricesAreSplit) {
  const std::vector<ParameterInfo> layout = parameter_layout(flash());
  const auto rows = [&](const std::string& name) { return named(layout, name).matrices; };
  using R = std::vector<RowRange>;
  // Two series in a CSA layer, one in an HCA layer; the indexer's own compressor too.
  EXPECT_EQ(rows("layers.2.attn.compressor.wkv.weight"), (R{{0, 512}, {512, 1024}}));
  EXPECT_EQ(rows("layers.2.attn.compressor.wgate.weight"), (R{{0, 512}, {512, 1024}}));
  EXPECT_EQ(rows("layers.3.attn.compressor.wkv.weight"), (R{{0, 512}}));
  EXPECT_EQ(rows("layers.2.attn.indexer.compressor.wgate.weight"), (R{{0, 128}, {128, 256}}));
  EXPECT_EQ(rows("layers.0.hc_attn_fn"), (R{{0, 4}, {4, 8}, {8, 24}}));
  EXPECT_EQ(rows("mtp.0.hc_ffn_fn"), (R{{0, 4}, {4, 8}, {8, 24}}));
  EXPECT_EQ(rows("hc_head_fn"), (R{{0, 4}}));
  EXPECT_EQ(rows("layers.0.attn.wo_a.weight").size(), 8u);
  EXPECT_EQ(rows("layers.0.attn.wo_a.weight")[7], (RowRange{7168, 8192}));
  EXPECT_EQ(rows("layers.0.attn.wq_b.weight"), (R{{0, 32768}}));
  EXPECT_EQ(rows("layers.0.ffn.experts.3.w2.weight"), (R{{0, 4096}}));
  EXPECT_TRUE(rows("embed.weight").empty());

  const std::vector<LogicalMatrix> matrices = logical_matrices(layout);
  EXPECT_EQ(matrices.size(), 34446u + 44 * 7 + 44 * 2 * 2 + 21 * 4);
  std::map<VariableId, std::int64_t> covered;
  for (const LogicalMatrix& m : matrices) {
    EXPECT_EQ(m.rows.begin, covered[m.parameter]);
    covered[m.parameter] = m.rows.end;
  }
  for (const auto& [id, end] : covered) EXPECT_EQ(end, layout[id - 1].shape[0]);
}

TEST(ParameterLayout, OptionsChangeWhatTheTextLeavesOpen) {
  const std::vector<ParameterInfo> heads = parameter_layout(flash(), {.split_heads = true});
  EXPECT_EQ(named(heads, "layers.0.attn.wq_b.weight").matrices.size(), 64u);
  EXPECT_EQ(named(heads, "layers.2.attn.indexer.wq_b.weight").matrices.size(), 64u);
  const std::vector<ParameterInfo> hc =
      parameter_layout(flash(), {.hyper_connections_on_adamw = true});
  EXPECT_EQ(named(hc, "layers.0.hc_attn_fn").group, ParameterGroup::adamw);
  EXPECT_TRUE(named(hc, "layers.0.hc_attn_fn").matrices.empty());
  EXPECT_EQ(named(hc, "layers.0.attn.wq_a.weight").group, ParameterGroup::muon);
  const std::vector<ParameterInfo> all = parameter_layout(flash(), {.matrices_on_adamw = true});
  EXPECT_EQ(count(all, ParameterGroup::muon), 0);
  EXPECT_TRUE(named(all, "layers.0.attn.wq_a.weight").decays);
  EXPECT_EQ(count(all, ParameterGroup::frozen), 44);
}

TEST(ParameterLayout, IndexerIsToldApart) {
  std::set<std::string> found;
  for (const ParameterInfo& p : parameter_layout(flash())) {
    if (p.of_indexer) found.insert(pattern_of(p.name));
  }
  EXPECT_THAT(found, ElementsAre("layers.#.attn.indexer.compressor.ape",
                                 "layers.#.attn.indexer.compressor.norm.weight",
                                 "layers.#.attn.indexer.compressor.wgate.weight",
                                 "layers.#.attn.indexer.compressor.wkv.weight",
                                 "layers.#.attn.indexer.weights_proj.weight",
                                 "layers.#.attn.indexer.wq_b.weight"));
}

TEST(ParameterStore, HandsOutValuesAndGradients) {
  ParameterStore store(test::small_config());
  std::size_t n_bytes = 0;
  for (const Parameter& p : store.parameters()) {
    EXPECT_EQ(&store.at(p.info.id), &p);
    EXPECT_EQ(&store.at(p.info.name), &p);
    const bool table = p.info.role == model::WeightRole::token_table;
    EXPECT_EQ(p.value.dtype(), table ? DType::i32 : DType::f32);
    EXPECT_EQ(p.value.variable(), table ? 0u : p.info.id);
    EXPECT_EQ(static_cast<bool>(p.gradient), p.info.group != ParameterGroup::frozen);
    n_bytes += p.value.nbytes() + (p.gradient ? p.gradient.nbytes() : 0);
    if (p.gradient) p.gradient.data<float>()[p.gradient.numel() - 1] = 3.0f;
  }
  EXPECT_EQ(store.nbytes(), n_bytes);
  ThreadPool pool(2);
  store.zero_gradients(pool);
  for (const Parameter& p : store.parameters()) {
    if (!p.gradient) continue;
    EXPECT_EQ(p.gradient.data<float>()[p.gradient.numel() - 1], 0.0f) << p.info.name;
  }
  try {
    (void)store.at("layers.9.attn.wq_a.weight");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::not_found);
    EXPECT_THAT(e.what(), HasSubstr("layers.9.attn.wq_a.weight"));
  }
}

}  // namespace
}  // namespace hadal::train
