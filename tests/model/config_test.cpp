#include "model/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/safetensors_bytes.h"

namespace hadal::model {
namespace {

using Json = nlohmann::json;

Json read(const char* path) {
  return Json::parse(read_text(path));
}
Json flash_json() {
  return read(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
}
Config parse(const Json& j) {
  return parse_config(j.dump(), "c.json");
}

// The same model in the key names of inference/config.json.
Json flash_inference() {
  Json j = {{"dim", 4096},           {"n_layers", 43},
            {"n_hash_layers", 3},    {"n_heads", 64},
            {"rope_head_dim", 64},   {"window_size", 128},
            {"rope_factor", 16},     {"original_seq_len", 65536},
            {"beta_fast", 32},       {"beta_slow", 1},
            {"moe_inter_dim", 2048}, {"n_activated_experts", 6},
            {"route_scale", 1.5},    {"score_func", "sqrtsoftplus"},
            {"dtype", "fp8"},        {"scale_fmt", "ue8m0"}};
  const Json flash = flash_json();
  for (const char* same : {"vocab_size", "head_dim", "q_lora_rank", "o_groups", "o_lora_rank",
                           "compress_ratios", "compress_rope_theta", "rope_theta", "index_n_heads",
                           "index_head_dim", "index_topk", "n_routed_experts", "n_shared_experts",
                           "swiglu_limit", "hc_mult", "hc_sinkhorn_iters", "expert_dtype"}) {
    j[same] = flash[same];
  }
  return j;
}

TEST(Config, ReadsFlash) {
  const Config c = load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json");
  EXPECT_EQ(c.hidden_size, 4096);
  EXPECT_EQ(c.max_position_embeddings, 1048576);
  EXPECT_EQ(c.nope_head_dim(), 448);
  EXPECT_EQ(c.q_dim(), 32768);
  EXPECT_EQ(c.o_group_in(), 4096);
  EXPECT_EQ(c.hc_mix(), 24);
  EXPECT_TRUE(c.clamp_shared_experts);
  EXPECT_EQ(c.expert_dtype, ExpertDType::fp4);
  ASSERT_TRUE(c.quantization_config.has_value());
  EXPECT_TRUE(c.notes.empty());
  EXPECT_EQ(c.official_numerics_obstacle(), "");

  ASSERT_EQ(c.layers.size(), 44u);
  EXPECT_EQ(c.count(LayerKind::window), 2);
  EXPECT_EQ(c.count(LayerKind::csa), 21);
  EXPECT_EQ(c.count(LayerKind::hca), 20);
  // architecture.md §1.2: window layers 0 and 1 and the MTP block rotate with base 10000 without
  // YaRN, the others with 160000 and YaRN; layers 0, 1 and 2 are hash-routed.
  EXPECT_EQ(c.layer(1).rope, (RopeSpec{10000.0, std::nullopt}));
  EXPECT_EQ(c.layer(2).rope, (RopeSpec{160000.0, YarnParams{16.0, 65536, 32.0, 1.0}}));
  EXPECT_EQ(c.layer(3).rope, c.layer(2).rope);
  EXPECT_EQ(c.mtp_layer(0), (LayerSpec{0, LayerKind::window, false, {10000.0, std::nullopt}}));
  EXPECT_TRUE(c.layer(2).hash_routed);
  EXPECT_FALSE(c.layer(3).hash_routed);
  EXPECT_EQ(c.layer(2).n_series(), 2);
  EXPECT_EQ(c.layer(3).n_series(), 1);
}

TEST(Config, ReadsPro) {
  const Config c = load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-pro.json");
  EXPECT_EQ(c.count(LayerKind::window), 0);
  EXPECT_EQ(c.count(LayerKind::csa), 30);
  EXPECT_EQ(c.count(LayerKind::hca), 31);
  EXPECT_EQ(c.layer(0).kind, LayerKind::hca);
  EXPECT_EQ(c.index_topk, 1024);
  EXPECT_EQ(c.routed_scaling_factor, 2.5f);
}

TEST(Config, ReadsTheGoldenConfigs) {
  const Config hf = load_config(HADAL_TEST_DATA_DIR "/golden/hf-tiny");
  EXPECT_THAT(hf.compress_ratios, testing::ElementsAre(0, 0, 4, 16, 4));
  EXPECT_EQ(hf.num_hash_layers, 2);
  EXPECT_EQ(hf.num_nextn_predict_layers, 0);
  EXPECT_EQ(hf.layer(3).rope, (RopeSpec{160000.0, YarnParams{16.0, 64, 32.0, 1.0}}));
  EXPECT_EQ(hf.layer(0).rope, (RopeSpec{10000.0, std::nullopt}));
  EXPECT_FALSE(hf.quantization_config.has_value());
  // 16 dims without rotation are no block of 64: a fact to report, not an error.
  EXPECT_THAT(hf.official_numerics_obstacle(), testing::HasSubstr("is 16"));

  const Config official = load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  EXPECT_EQ(official.layer(3).compress_ratio, 32);
  EXPECT_EQ(official.layer(3).kind, LayerKind::hca);
  EXPECT_EQ(official.layers.size(), 6u);
  EXPECT_EQ(official.official_numerics_obstacle(), "");
}

TEST(Config, DialectsAgree) {
  const Config root = parse(flash_json()), inference = parse(flash_inference());
  EXPECT_EQ(to_json(root), to_json(inference));
  EXPECT_EQ(root.layers, inference.layers);

  // The form Hugging Face saves: no ratios, no hash count, no rope dim, and never an MTP block.
  Json hf = flash_json();
  hf["layer_types"] = Json::array();
  for (const LayerSpec& l : root.layers) {
    if (hf["layer_types"].size() == 43) break;
    hf["layer_types"].push_back(l.kind == LayerKind::window ? "sliding_attention"
                                : l.kind == LayerKind::csa  ? "compressed_sparse_attention"
                                                            : "heavily_compressed_attention");
  }
  hf["mlp_layer_types"] = Json::array();
  for (int i = 0; i < 43; ++i) hf["mlp_layer_types"].push_back(i < 3 ? "hash_moe" : "moe");
  hf["rope_parameters"] = {{"main", {{"rope_type", "default"}, {"rope_theta", 10000.0}}},
                           {"compress",
                            {{"rope_type", "yarn"},
                             {"rope_theta", 160000},
                             {"factor", 16},
                             {"original_max_position_embeddings", 65536},
                             {"attention_factor", 1.0}}}};
  hf["partial_rotary_factor"] = 0.125;
  hf["num_local_experts"] = hf["n_routed_experts"];
  hf["intermediate_size"] = hf["moe_intermediate_size"];
  for (const char* key :
       {"compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_theta",
        "compress_rope_theta", "rope_scaling", "n_routed_experts", "moe_intermediate_size"}) {
    hf.erase(key);
  }
  const Config saved = parse(hf);
  ASSERT_EQ(saved.layers.size(), 43u);
  EXPECT_TRUE(std::equal(saved.layers.begin(), saved.layers.end(), root.layers.begin()));
  EXPECT_EQ(saved.qk_rope_head_dim, 64);
  EXPECT_EQ(saved.n_routed_experts, 256);
  ASSERT_EQ(saved.notes.size(), 1u);
  EXPECT_THAT(saved.notes[0], testing::HasSubstr("runs without MTP"));
}

TEST(Config, WritesWhatItReads) {
  for (const char* path : {HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json",
                           HADAL_SOURCE_DIR "/configs/deepseek-v4-pro.json",
                           HADAL_TEST_DATA_DIR "/golden/hf-tiny/config.json",
                           HADAL_TEST_DATA_DIR "/golden/official-tiny/config.json"}) {
    const Config c = load_config(path);
    const Config again = parse_config(to_json(c), c.source);
    EXPECT_EQ(to_json(again), to_json(c)) << path;
    EXPECT_EQ(again.layers, c.layers) << path;
  }
  // Every key of the published file survives, with its value.
  const Json flash = flash_json(), written = Json::parse(to_json(parse(flash)));
  for (const auto& [key, value] : flash.items()) {
    if (key == "transformers_version") continue;
    EXPECT_EQ(written.value(key, Json()), value) << key;
  }
}

TEST(Config, LaterReleasesWithMoreRatiosAndDSpark) {
  Json j = flash_json();
  j["compress_ratios"].push_back(0);
  j["compress_ratios"].push_back(0);
  EXPECT_EQ(parse(j).layers.size(), 44u);
  j["dspark_block_size"] = 5;
  const Config c = parse(j);
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_EQ(c.layers.size(), 43u);
  EXPECT_THAT(c.notes, testing::ElementsAre(testing::HasSubstr("DSpark")));
}

TEST(Config, ClampOfSharedExpertsFollowsTheLimitUnlessStated) {
  Json j = flash_json();
  j["clamp_shared_experts"] = false;
  Config c = parse(j);
  EXPECT_FALSE(c.clamp_shared_experts);
  EXPECT_FALSE(parse_config(to_json(c), "again").clamp_shared_experts);
  j = flash_json();
  j.erase("swiglu_limit");
  c = parse(j);
  EXPECT_EQ(c.swiglu_limit, 0.0f);
  EXPECT_FALSE(c.clamp_shared_experts);
  j["clamp_shared_experts"] = true;
  EXPECT_ERROR(parse(j), ErrorCode::invalid_argument, "swiglu_limit gives no limit");
}

TEST(Config, HasDefaultsOnlyWhereTheSpecificationHasThem) {
  Json j = flash_json();
  for (const char* key : {"hc_eps", "rms_norm_eps", "n_shared_experts", "num_nextn_predict_layers",
                          "quantization_config", "expert_dtype", "initializer_range",
                          "num_key_value_heads", "scoring_func", "rope_scaling", "eos_token_id"}) {
    j.erase(key);
  }
  j["bos_token_id"] = nullptr;
  const Config c = parse(j);
  EXPECT_EQ(c.rms_norm_eps, 1e-6f);
  EXPECT_EQ(c.n_shared_experts, 1);
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_FALSE(c.quantization_config.has_value());
  EXPECT_EQ(c.expert_dtype, ExpertDType::unstated);
  EXPECT_EQ(c.layer(2).rope, (RopeSpec{160000.0, std::nullopt}));
  for (const char* key : {"vocab_size",
                          "hidden_size",
                          "num_hidden_layers",
                          "num_attention_heads",
                          "head_dim",
                          "q_lora_rank",
                          "o_groups",
                          "o_lora_rank",
                          "sliding_window",
                          "num_experts_per_tok",
                          "n_routed_experts",
                          "moe_intermediate_size",
                          "routed_scaling_factor",
                          "hc_mult",
                          "hc_sinkhorn_iters",
                          "max_position_embeddings",
                          "model_type",
                          "compress_ratios",
                          "num_hash_layers",
                          "qk_rope_head_dim",
                          "rope_theta",
                          "compress_rope_theta"}) {
    Json without = flash_json();
    without.erase(key);
    EXPECT_ERROR(parse(without), ErrorCode::corrupt_data,
                 fmt::format("c.json: the key {} is missing", key));
  }
  for (const char* key :
       {"n_hash_layers", "n_heads", "rope_head_dim", "window_size", "rope_factor", "moe_inter_dim",
        "n_activated_experts", "route_scale", "compress_rope_theta", "compress_ratios"}) {
    Json without = flash_inference();
    without.erase(key);
    EXPECT_ERROR(parse(without), ErrorCode::corrupt_data,
                 fmt::format("c.json: the key {} is missing", key));
  }
}

struct Refusal {
  std::string key;  // a JSON pointer into Flash's config
  Json value;
  ErrorCode code;
  std::string sentence;
};

TEST(Config, RefusesImpossibleAndUnknownValues) {
  const auto invalid = ErrorCode::invalid_argument, unsupported = ErrorCode::unsupported,
             corrupt = ErrorCode::corrupt_data;
  const std::vector<Refusal> refusals = {
      {"/vocab_size", 0, invalid, "vocab_size is 0, wanted 1 to"},
      {"/vocab_size", "many", corrupt, "vocab_size is \"many\", wanted an integer"},
      {"/vocab_size", 1e6, corrupt, "wanted an integer"},
      {"/hidden_size", 1000000000000, invalid, "hidden_size is 1000000000000, wanted 1 to"},
      {"/hidden_size", 18446744073709551615ull, invalid, "beyond 64 bits"},
      {"/hidden_size", -4096, invalid, "hidden_size is -4096"},
      {"/num_hidden_layers", 44, invalid, "compress_ratios has 44 entries, wanted at least 45"},
      {"/num_hidden_layers", 1000000, invalid, "num_hidden_layers is 1000000"},
      {"/num_hash_layers", 44, invalid, "num_hash_layers is 44, wanted 0 to 43"},
      {"/num_nextn_predict_layers", 2, invalid,
       "compress_ratios has 44 entries, wanted at least 45"},
      {"/compress_ratios/5", -1, invalid, "compress_ratios[5] is -1"},
      {"/compress_ratios/5", "4", corrupt, "compress_ratios is \"4\", wanted an integer"},
      {"/compress_ratios", 4, corrupt, "compress_ratios is 4, wanted a list"},
      {"/qk_rope_head_dim", 63, invalid, "qk_rope_head_dim is 63, wanted an even number"},
      {"/qk_rope_head_dim", 514, invalid, "qk_rope_head_dim is 514, wanted 2 to 512"},
      {"/o_groups", 7, invalid, "num_attention_heads is 64, wanted a multiple of o_groups = 7"},
      {"/o_groups", 0, invalid, "o_groups is 0"},
      {"/num_experts_per_tok", 257, invalid, "num_experts_per_tok is 257, wanted 1 to 256"},
      {"/n_routed_experts", 1000000, invalid, "n_routed_experts is 1000000"},
      {"/n_shared_experts", 2, unsupported, "n_shared_experts is 2"},
      {"/hc_mult", 0, invalid, "hc_mult is 0, wanted 1 to 16"},
      {"/hc_sinkhorn_iters", -1, invalid, "hc_sinkhorn_iters is -1"},
      {"/hc_eps", 0.0, invalid, "hc_eps is 0, wanted a positive number"},
      {"/rms_norm_eps", 1e300, invalid, "beyond what a 32-bit float holds"},
      {"/swiglu_limit", -1.0, invalid, "swiglu_limit is -1"},
      {"/routed_scaling_factor", 0, invalid, "routed_scaling_factor is 0"},
      {"/index_topk", 0, invalid, "index_topk is 0, wanted 1 to"},
      {"/index_head_dim", 32, invalid, "index_head_dim is 32, wanted at least qk_rope_head_dim"},
      {"/sliding_window", 0, invalid, "sliding_window is 0"},
      {"/max_position_embeddings", 0, invalid, "max_position_embeddings is 0"},
      {"/rope_theta", 1.0, invalid, "rope_theta is 1, wanted a number above 1"},
      {"/compress_rope_theta", "x", corrupt, "compress_rope_theta is \"x\", wanted a number"},
      {"/rope_scaling/factor", 0.5, invalid, "rope_scaling.factor is 0.5"},
      {"/rope_scaling/beta_fast", 0.5, invalid, "rope_scaling.beta_fast is 0.5"},
      {"/rope_scaling/type", "linear", unsupported, "rope_scaling.type is \"linear\""},
      {"/rope_scaling/attention_factor", 1.2, unsupported, "attention_factor is 1.2"},
      {"/rope_scaling/factor", nullptr, corrupt, "the key rope_scaling.factor is missing"},
      {"/eos_token_id", 129280, invalid, "eos_token_id is 129280, wanted 0 to 129279"},
      {"/model_type", "deepseek_v41", unsupported, "model_type is \"deepseek_v41\""},
      {"/scoring_func", "sigmoid", unsupported, "scoring_func is \"sigmoid\""},
      {"/topk_method", "greedy", unsupported, "topk_method is \"greedy\""},
      {"/hidden_act", "gelu", unsupported, "hidden_act is \"gelu\""},
      {"/norm_topk_prob", false, unsupported, "norm_topk_prob is false"},
      {"/norm_topk_prob", 1, corrupt, "norm_topk_prob is 1, wanted true or false"},
      {"/tie_word_embeddings", true, unsupported, "tie_word_embeddings is true"},
      {"/attention_bias", true, unsupported, "attention_bias is true"},
      {"/num_key_value_heads", 8, unsupported, "num_key_value_heads is 8"},
      {"/n_group", 8, unsupported, "n_group is 8"},
      {"/expert_dtype", "int4", unsupported, "expert_dtype is \"int4\""},
      {"/quantization_config", 8, corrupt, "quantization_config is 8, wanted an object"},
      {"/quantization_config/quant_method", "awq", unsupported,
       "quantization_config.quant_method is \"awq\"; hadal implements \"fp8\""},
      {"/quantization_config/fmt", "e5m2", unsupported, "fmt is \"e5m2\""},
      {"/quantization_config/scale_fmt", "x", unsupported, "scale_fmt is \"x\""},
      {"/quantization_config/weight_block_size", {32, 32}, unsupported, "is not [128, 128]"},
  };
  for (const Refusal& r : refusals) {
    SCOPED_TRACE(r.key + " = " + r.value.dump());
    Json j = flash_json();
    j[Json::json_pointer(r.key)] = r.value;
    EXPECT_ERROR(parse(j), r.code, r.sentence);
    EXPECT_ERROR(parse(j), r.code, "c.json: ");
  }
}

TEST(Config, RefusesSizesThatAreAbsurdTogether) {
  Json j = flash_json();
  j["num_hidden_layers"] = 1000;
  j["compress_ratios"] = std::vector<int>(1001, 0);
  j["n_routed_experts"] = 16384;
  EXPECT_ERROR(parse(j), ErrorCode::invalid_argument, "1001 blocks of 16384 experts");
  j = flash_json();
  j["hidden_size"] = 262144;
  j["moe_intermediate_size"] = 262144;
  EXPECT_ERROR(parse(j), ErrorCode::invalid_argument, "the experts have");
}

TEST(Config, RefusesHuggingFaceFormsItCannotExpress) {
  const Json tiny = read(HADAL_TEST_DATA_DIR "/golden/hf-tiny/config.json");
  const auto with = [&](const char* pointer, Json value) {
    Json j = tiny;
    j[Json::json_pointer(pointer)] = std::move(value);
    return j;
  };
  const auto unsupported = ErrorCode::unsupported;
  EXPECT_ERROR(parse(with("/layer_types/1", "full_attention")), unsupported,
               "layer_types[1] is \"full_attention\"");
  EXPECT_ERROR(parse(with("/mlp_layer_types/4", "hash_moe")), unsupported,
               "mlp_layer_types[4] is hash_moe behind a moe layer");
  EXPECT_ERROR(parse(with("/mlp_layer_types/4", "dense")), unsupported,
               "mlp_layer_types[4] is \"dense\"");
  EXPECT_ERROR(parse(with("/compress_rates/compressed_sparse_attention", 8)), unsupported,
               "compress_rates.compressed_sparse_attention is 8, wanted 4");
  EXPECT_ERROR(parse(with("/compress_rates/heavily_compressed_attention", 4)), unsupported,
               "compress_rates.heavily_compressed_attention is 4");
  EXPECT_ERROR(parse(with("/rope_parameters/main/rope_type", "yarn")), unsupported,
               "rope_parameters.main.rope_type is \"yarn\"");
  EXPECT_ERROR(parse(with("/rope_parameters/compress", nullptr)), ErrorCode::corrupt_data,
               "the key rope_parameters.compress is missing");
}

TEST(Config, RefusesWhatIsNoConfig) {
  EXPECT_ERROR(parse_config("", "c.json"), ErrorCode::corrupt_data, "c.json: not valid JSON");
  EXPECT_ERROR(parse_config("{\"a\":1e999}", "c.json"), ErrorCode::corrupt_data, "not valid JSON");
  EXPECT_ERROR(parse_config("[1]", "c.json"), ErrorCode::corrupt_data, "array at the top");
  EXPECT_ERROR(parse_config("{}", "c.json"), ErrorCode::corrupt_data, "model_type is missing");
  EXPECT_ERROR(load_config(HADAL_TEST_DATA_DIR "/nowhere"), ErrorCode::not_found, "nowhere");
}

// transformers knows the ratio 128 alone; of another it is told in its own keys.
TEST(Config, WritesLayerTypesWhereTransformersNeedsThem) {
  const std::string published =
      to_json(load_config(HADAL_SOURCE_DIR "/configs/deepseek-v4-flash.json"));
  EXPECT_FALSE(Json::parse(published).contains("layer_types"));
  Config c = load_config(HADAL_TEST_DATA_DIR "/golden/official-tiny");
  Json j = Json::parse(to_json(c));
  EXPECT_EQ(j["layer_types"].size(), 5u);
  EXPECT_EQ(j["compress_rates"]["heavily_compressed_attention"], 32);
  j.erase("compress_ratios");
  const Config again = parse_config(j.dump(), "again");
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(again.layers[i], c.layers[i]);
  c.compress_ratios[2] = 8;  // two ratios besides 4: there are no words for that
  c.finalize();
  EXPECT_FALSE(Json::parse(to_json(c)).contains("layer_types"));
}

}  // namespace
}  // namespace hadal::model
