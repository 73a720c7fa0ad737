#include "model/weight_names.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/file.h"
#include "model/weight_layout.h"

namespace hadal::model {
namespace {

TEST(WeightNames, OfficialNamesAreFixedPoints) {
  const Config c = load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  for (const io::TensorDecl& t : stored_tensors(c, WeightFormat::published)) {
    EXPECT_EQ(canonical_name(t.name), (CanonicalName{t.name, FusedExperts::none}));
  }
}

TEST(WeightNames, EveryModuleNameOfTheGoldenModelFindsItsOfficialOne) {
  const Config c = load_config(HADAL_TEST_DATA_DIR "/golden/hf-tiny");
  std::set<std::string> expected, found;
  for (const ExpectedWeight& w : expected_weights(c)) expected.insert(w.name);
  const auto names =
      nlohmann::json::parse(read_text(HADAL_TEST_DATA_DIR "/golden/hf-tiny/hf_names.json"));
  for (const auto& [name, shape] : names.items()) {
    const CanonicalName canonical = canonical_name(name);
    if (canonical.fused == FusedExperts::none) {
      EXPECT_TRUE(expected.contains(canonical.name)) << name << " -> " << canonical.name;
      EXPECT_TRUE(found.insert(canonical.name).second) << canonical.name << " twice";
      continue;
    }
    for (std::int64_t e = 0; e < c.n_routed_experts; ++e) {
      for (const char* part : {"w1", "w2", "w3"}) {
        if ((part[1] == '2') != (canonical.fused == FusedExperts::down)) continue;
        found.insert(canonical.name + "." + std::to_string(e) + "." + part + ".weight");
      }
    }
  }
  EXPECT_EQ(found, expected);
}

TEST(WeightNames, SavedAndOtherSpellings) {
  const auto name = [](const char* file_name) { return canonical_name(file_name).name; };
  EXPECT_EQ(name("model.layers.3.attn.norm.weight"), "layers.3.attn.kv_norm.weight");
  EXPECT_EQ(name("model.layers.3.attn.q_norm.weight"), "layers.3.attn.q_norm.weight");
  EXPECT_EQ(name("model.layers.3.attn.indexer.compressor.norm.weight"),
            "layers.3.attn.indexer.compressor.norm.weight");
  EXPECT_EQ(name("model.hc_head.hc_fn"), "hc_head_fn");
  EXPECT_EQ(name("head.weight"), "head.weight");
  EXPECT_EQ(name("model.norm.weight"), "norm.weight");
  EXPECT_EQ(name("layers.12.attn.wq_a.weight_scale_inv"), "layers.12.attn.wq_a.scale");
  EXPECT_EQ(name("model.layers.12.self_attn.q_a_proj.weight_scale_inv"),
            "layers.12.attn.wq_a.scale");
  EXPECT_EQ(name("model.layers.1.mlp.experts.17.up_proj.weight"),
            "layers.1.ffn.experts.17.w3.weight");
  EXPECT_EQ(name("model.layers.1.self_attn.compressor.indexer.weights_proj.weight"),
            "layers.1.attn.indexer.weights_proj.weight");
  EXPECT_EQ(canonical_name("model.layers.1.mlp.experts.gate_up_proj"),
            (CanonicalName{"layers.1.ffn.experts", FusedExperts::gate_up}));
}

TEST(WeightNames, UnknownNamesComeBack) {
  for (const char* name :
       {"", "layers", "layers.", "layers.x.attn.norm.weight", "layers.1.", "mtp.0.something",
        "vision.patch.weight", "layers.1.mlp.experts.x.up_proj", "layers.1.mlp.experts.3"}) {
    EXPECT_EQ(canonical_name(name), (CanonicalName{name, FusedExperts::none}));
  }
}

}  // namespace
}  // namespace hadal::model
