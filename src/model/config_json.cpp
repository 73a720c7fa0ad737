// The three dialects of config.json.  Source: architecture.md §1.1, §1.4.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "io/json_section.h"
#include "model/config.h"

namespace hadal::model {

namespace {

using Json = nlohmann::json;

using io::JsonSection;

YarnParams read_yarn(const JsonSection& s) {
  YarnParams yarn;
  yarn.factor = s.required_number("factor");
  yarn.original_max_position_embeddings = s.required_integer("original_max_position_embeddings");
  yarn.beta_fast = s.number("beta_fast").value_or(32.0);
  yarn.beta_slow = s.number("beta_slow").value_or(1.0);
  const double attention_factor = s.number("attention_factor").value_or(1.0);
  if (attention_factor != 1.0) {
    s.fail(ErrorCode::unsupported,
           fmt::format("{} is {}; DeepSeek-V4 scales neither cos, sin nor the softmax (1.0)",
                       s.path("attention_factor"), attention_factor));
  }
  return yarn;
}

// `type` or, as newer files spell it, `rope_type`.
std::optional<YarnParams> read_rope_scaling(const JsonSection& s) {
  const char* key = s.has("type") ? "type" : "rope_type";
  const auto type = s.text(key);
  if (!type) s.missing(key);
  if (*type == "default") return std::nullopt;
  if (*type != "yarn") {
    s.fail(
        ErrorCode::unsupported,
        fmt::format("{} is \"{}\"; hadal implements \"yarn\" and \"default\"", s.path(key), *type));
  }
  return read_yarn(s);
}

ExpertDType read_expert_dtype(const JsonSection& s) {
  const auto text = s.text("expert_dtype");
  if (!text) return ExpertDType::unstated;
  for (const ExpertDType dtype :
       {ExpertDType::fp4, ExpertDType::fp8, ExpertDType::bf16, ExpertDType::f32}) {
    if (*text == to_string(dtype)) return dtype;
  }
  s.fail(ErrorCode::unsupported,
         fmt::format("{} is \"{}\", wanted fp4, fp8, bf16 or f32", s.path("expert_dtype"), *text));
}

void read_quantization(const JsonSection& root, Config& c) {
  const auto s = root.section("quantization_config");
  if (!s) return;
  const QuantizationConfig q;
  if (!s->has("quant_method")) s->missing("quant_method");
  s->expect_text("quant_method", q.quant_method);
  s->expect_text("fmt", q.fmt);
  s->expect_text("scale_fmt", q.scale_fmt);
  s->expect_text("activation_scheme", q.activation_scheme);
  const auto block = s->integers("weight_block_size");
  if (block && *block != std::vector<std::int64_t>{128, 128}) {
    s->fail(ErrorCode::unsupported, fmt::format("{} is not [128, 128]; hadal implements that alone",
                                                s->path("weight_block_size")));
  }
  c.quantization_config = q;
}

// Keys that mean the same in every dialect.
void read_common(const JsonSection& s, Config& c) {
  c.vocab_size = s.required_integer("vocab_size");
  c.head_dim = s.required_integer("head_dim");
  c.q_lora_rank = s.required_integer("q_lora_rank");
  c.o_groups = s.required_integer("o_groups");
  c.o_lora_rank = s.required_integer("o_lora_rank");
  c.index_n_heads = s.integer("index_n_heads").value_or(0);
  c.index_head_dim = s.integer("index_head_dim").value_or(0);
  c.index_topk = s.integer("index_topk").value_or(0);
  c.n_shared_experts = s.integer("n_shared_experts").value_or(1);
  c.hc_mult = s.required_integer("hc_mult");
  c.hc_sinkhorn_iters = s.required_integer("hc_sinkhorn_iters");
  c.hc_eps = s.f32("hc_eps").value_or(1e-6f);
  c.swiglu_limit = s.f32("swiglu_limit").value_or(0.0f);
  c.clamp_shared_experts = s.boolean("clamp_shared_experts").value_or(c.swiglu_limit > 0.0f);
  c.expert_dtype = read_expert_dtype(s);
  c.initializer_range = s.number("initializer_range").value_or(0.02);
  s.expect_integer("num_key_value_heads", 1);
  s.expect_integer("n_group", 1);
  s.expect_integer("topk_group", 1);
}

// layer_types and compress_rates of the HF form -> one ratio a layer.
std::vector<std::int64_t> ratios_of_layer_types(const JsonSection& s) {
  std::int64_t csa = kCsaRatio, hca = 128;
  if (const auto rates = s.section("compress_rates")) {
    csa = rates->integer("compressed_sparse_attention").value_or(csa);
    hca = rates->integer("heavily_compressed_attention").value_or(hca);
  }
  const auto refuse_rate = [&](const char* layer_type, std::int64_t found, const char* wanted) {
    s.fail(ErrorCode::unsupported,
           fmt::format("compress_rates.{} is {}, wanted {}", layer_type, found, wanted));
  };
  std::vector<std::int64_t> ratios;
  const auto types = s.texts("layer_types").value_or(std::vector<std::string>{});
  for (const std::string& type : types) {
    if (type == "sliding_attention") {
      ratios.push_back(0);
    } else if (type == "compressed_sparse_attention") {
      if (csa != kCsaRatio) refuse_rate("compressed_sparse_attention", csa, "4");
      ratios.push_back(csa);
    } else if (type == "heavily_compressed_attention") {
      if (hca == kCsaRatio || hca == 0) {
        refuse_rate("heavily_compressed_attention", hca, "neither 0 nor 4, which are other kinds");
      }
      ratios.push_back(hca);
    } else {
      s.fail(ErrorCode::unsupported,
             fmt::format("layer_types[{}] is \"{}\", wanted sliding_attention, "
                         "compressed_sparse_attention or heavily_compressed_attention",
                         ratios.size(), type));
    }
  }
  return ratios;
}

// mlp_layer_types of the HF form: hash_moe first, then moe.
std::int64_t hash_layers_of(const JsonSection& s, const std::vector<std::string>& types) {
  std::int64_t n_hash = 0;
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] != "hash_moe" && types[i] != "moe") {
      s.fail(ErrorCode::unsupported,
             fmt::format("mlp_layer_types[{}] is \"{}\", wanted hash_moe or moe", i, types[i]));
    }
    if (types[i] == "moe") continue;
    if (static_cast<std::int64_t>(i) != n_hash) {
      s.fail(ErrorCode::unsupported,
             fmt::format("mlp_layer_types[{}] is hash_moe behind a moe layer; hash-routed layers "
                         "come first in DeepSeek-V4",
                         i));
    }
    ++n_hash;
  }
  return n_hash;
}

void read_rope(const JsonSection& s, Config& c) {
  if (const auto parameters = s.section("rope_parameters")) {
    const auto main = parameters->section("main"), compress = parameters->section("compress");
    if (!main) parameters->missing("main");
    if (!compress) parameters->missing("compress");
    main->expect_text("rope_type", "default");
    c.rope_theta = main->required_number("rope_theta");
    c.compress_rope_theta = compress->required_number("rope_theta");
    c.rope_scaling = read_rope_scaling(*compress);
    return;
  }
  c.rope_theta = s.required_number("rope_theta");
  const bool compressed = std::any_of(c.compress_ratios.begin(), c.compress_ratios.end(),
                                      [](std::int64_t ratio) { return ratio != 0; });
  const auto compress_theta = s.number("compress_rope_theta");
  if (compressed && !compress_theta) s.missing("compress_rope_theta");
  c.compress_rope_theta = compress_theta.value_or(c.compress_rope_theta);
  if (const auto scaling = s.section("rope_scaling")) c.rope_scaling = read_rope_scaling(*scaling);
}

void read_rope_head_dim(const JsonSection& s, Config& c) {
  if (const auto dim = s.integer("qk_rope_head_dim")) {
    c.qk_rope_head_dim = *dim;
    return;
  }
  const auto factor = s.number("partial_rotary_factor");
  if (!factor) s.missing("qk_rope_head_dim", " (nor is there a partial_rotary_factor)");
  if (!(*factor > 0.0 && *factor <= 1.0)) {
    s.fail(ErrorCode::invalid_argument,
           fmt::format("partial_rotary_factor is {}, wanted a number in (0, 1]", *factor));
  }
  c.qk_rope_head_dim = std::llround(*factor * static_cast<double>(c.head_dim));
}

// Root config.json, published or saved by HF.
void read_root(const JsonSection& s, Config& c) {
  const auto model_type = s.text("model_type");
  if (!model_type) s.missing("model_type");
  s.expect_text("model_type", "deepseek_v4");
  read_common(s, c);
  c.hidden_size = s.required_integer("hidden_size");
  c.num_hidden_layers = s.required_integer("num_hidden_layers");
  c.num_nextn_predict_layers = s.integer("num_nextn_predict_layers").value_or(0);
  c.max_position_embeddings = s.required_integer("max_position_embeddings");
  c.num_attention_heads = s.required_integer("num_attention_heads");
  c.sliding_window = s.required_integer("sliding_window");
  c.num_experts_per_tok = s.required_integer("num_experts_per_tok");
  const auto routed_scaling_factor = s.f32("routed_scaling_factor");
  if (!routed_scaling_factor) s.missing("routed_scaling_factor");
  c.routed_scaling_factor = *routed_scaling_factor;
  c.rms_norm_eps = s.f32("rms_norm_eps").value_or(1e-6f);

  // HF's own names for two of them serve where the official ones are absent.
  const auto either = [&](const char* key, const char* alias) {
    const auto v = s.integer(key);
    return v ? *v : s.integer(alias) ? *s.integer(alias) : s.required_integer(key);
  };
  c.n_routed_experts = either("n_routed_experts", "num_local_experts");
  c.moe_intermediate_size = either("moe_intermediate_size", "intermediate_size");

  if (const auto ratios = s.integers("compress_ratios")) {
    c.compress_ratios = *ratios;
  } else if (s.has("layer_types")) {
    c.compress_ratios = ratios_of_layer_types(s);
    if (c.num_nextn_predict_layers != 0) {
      c.notes.push_back(
          fmt::format("{}: num_nextn_predict_layers is {}, but a checkpoint in this form has no "
                      "MTP weights; the model runs without MTP",
                      c.source, c.num_nextn_predict_layers));
      c.num_nextn_predict_layers = 0;
    }
  } else {
    s.missing("compress_ratios", " (nor is there a layer_types)");
  }
  if (const auto n_hash = s.integer("num_hash_layers")) {
    c.num_hash_layers = *n_hash;
  } else if (const auto types = s.texts("mlp_layer_types")) {
    c.num_hash_layers = hash_layers_of(s, *types);
  } else {
    s.missing("num_hash_layers", " (nor is there a mlp_layer_types)");
  }
  if (s.has("dspark_block_size") && c.num_nextn_predict_layers != 0) {
    c.notes.push_back(
        fmt::format("{}: the draft stages of this checkpoint are DSpark, which hadal does not "
                    "implement; mtp.* tensors are left out and nothing is drafted",
                    c.source));
    c.num_nextn_predict_layers = 0;
  }
  read_rope_head_dim(s, c);
  read_rope(s, c);
  read_quantization(s, c);

  s.expect_text("scoring_func", "sqrtsoftplus");
  s.expect_text("topk_method", "noaux_tc");
  s.expect_text("hidden_act", "silu");
  s.expect_bool("norm_topk_prob", true);
  s.expect_bool("tie_word_embeddings", false);
  s.expect_bool("attention_bias", false);
  s.expect_bool("mlp_bias", false);

  c.bos_token_id = s.integer("bos_token_id").value_or(0);
}

// inference/config.json. What it leaves out are the reference code's defaults where they are
// released values too; its smoke-test defaults (rope_factor 40, ...) are never assumed.
void read_inference(const JsonSection& s, Config& c) {
  read_common(s, c);
  c.hidden_size = s.required_integer("dim");
  c.num_hidden_layers = s.required_integer("n_layers");
  c.num_hash_layers = s.required_integer("n_hash_layers");
  c.num_nextn_predict_layers = s.integer("n_mtp_layers").value_or(1);
  c.num_attention_heads = s.required_integer("n_heads");
  c.qk_rope_head_dim = s.required_integer("rope_head_dim");
  c.sliding_window = s.required_integer("window_size");
  c.n_routed_experts = s.required_integer("n_routed_experts");
  c.num_experts_per_tok = s.required_integer("n_activated_experts");
  c.moe_intermediate_size = s.required_integer("moe_inter_dim");
  const auto route_scale = s.f32("route_scale");
  if (!route_scale) s.missing("route_scale");
  c.routed_scaling_factor = *route_scale;
  c.rms_norm_eps = s.f32("norm_eps").value_or(1e-6f);
  const auto ratios = s.integers("compress_ratios");
  if (!ratios) s.missing("compress_ratios");
  c.compress_ratios = *ratios;

  c.rope_theta = s.number("rope_theta").value_or(10000.0);
  c.compress_rope_theta = s.required_number("compress_rope_theta");
  const std::int64_t original = s.integer("original_seq_len").value_or(0);
  double context = 1048576.0;
  if (original != 0) {  // 0 turns YaRN off, as in the reference
    YarnParams yarn;
    yarn.factor = s.required_number("rope_factor");
    yarn.original_max_position_embeddings = original;
    yarn.beta_fast = s.number("beta_fast").value_or(32.0);
    yarn.beta_slow = s.number("beta_slow").value_or(1.0);
    c.rope_scaling = yarn;
    context = yarn.factor * static_cast<double>(original);
  }
  // max_seq_len is a run-time argument there; the context that rope was stretched to is the limit.
  if (const auto n = s.integer("max_seq_len")) {
    c.max_position_embeddings = *n;
  } else if (context >= 1.0 && context <= 1e12) {
    c.max_position_embeddings = std::llround(context);
  }

  s.expect_text("score_func", "sqrtsoftplus");
  const std::string dtype = s.text("dtype").value_or("bf16");
  if (dtype == "fp8") {
    s.expect_text("scale_fmt", "ue8m0");
    c.quantization_config = QuantizationConfig{};
  } else if (dtype != "bf16") {
    s.fail(ErrorCode::unsupported, fmt::format("dtype is \"{}\", wanted fp8 or bf16", dtype));
  }
}

// HF writes one id or a list.
void read_eos(const JsonSection& s, const Json& root, Config& c) {
  const auto it = root.find("eos_token_id");
  if (it != root.end() && it->is_array()) {
    c.eos_token_id = *s.integers("eos_token_id");
  } else if (const auto id = s.integer("eos_token_id")) {
    c.eos_token_id = {*id};
  }
}

// The shortest decimal that reads back as this float: 1e-06, not 9.99999997e-07.
double shortest(float x) {
  const std::string text = fmt::format("{}", x);
  double value = 0.0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

Config parse_config(std::string_view json_text, std::string source_name) {
  Config c;
  c.source = std::move(source_name);
  const Json root = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) {
    throw Error(ErrorCode::corrupt_data, fmt::format("{}: not valid JSON", c.source));
  }
  if (!root.is_object()) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("{}: {} at the top, wanted an object", c.source, root.type_name()));
  }
  const JsonSection s(root, "", c.source);
  if (s.has("dim") && s.has("n_layers")) {
    read_inference(s, c);
  } else {
    read_root(s, c);
  }
  read_eos(s, root, c);
  c.finalize();
  return c;
}

Config load_config(const Path& path) {
  std::error_code ignored;
  const bool is_directory = std::filesystem::is_directory(path, ignored);
  const Path file = is_directory ? path / "config.json" : path;
  return parse_config(read_text(file), file.string());
}

namespace {

// transformers knows the ratios 0, 4 and 128 by heart; of any other one it wants to be told.
// compress_ratios still is what hadal reads.
void write_layer_types(const Config& c, nlohmann::ordered_json& j) {
  std::int64_t ratio = 128;
  std::vector<std::string> types;
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::int64_t r = c.compress_ratios[static_cast<std::size_t>(i)];
    if (r != 0 && r != kCsaRatio) {
      if (ratio != 128 && r != ratio) return;  // more than it has words for
      ratio = r;
    }
    types.emplace_back(r == 0           ? "sliding_attention"
                       : r == kCsaRatio ? "compressed_sparse_attention"
                                        : "heavily_compressed_attention");
  }
  if (ratio == 128) return;
  j["layer_types"] = types;
  j["compress_rates"] = {{"compressed_sparse_attention", kCsaRatio},
                         {"heavily_compressed_attention", ratio}};
}

}  // namespace

std::string to_json(const Config& c) {
  nlohmann::ordered_json j;
  j["architectures"] = {"DeepseekV4ForCausalLM"};
  j["model_type"] = "deepseek_v4";
  j["torch_dtype"] = "bfloat16";
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_hash_layers"] = c.num_hash_layers;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = 1;
  j["head_dim"] = c.head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["q_lora_rank"] = c.q_lora_rank;
  j["o_groups"] = c.o_groups;
  j["o_lora_rank"] = c.o_lora_rank;
  j["sliding_window"] = c.sliding_window;
  j["compress_ratios"] = c.compress_ratios;
  write_layer_types(c, j);
  j["compress_rope_theta"] = c.compress_rope_theta;
  j["rope_theta"] = c.rope_theta;
  if (c.rope_scaling) {
    j["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", c.rope_scaling->factor},
        {"original_max_position_embeddings", c.rope_scaling->original_max_position_embeddings},
        {"beta_fast", c.rope_scaling->beta_fast},
        {"beta_slow", c.rope_scaling->beta_slow}};
  }
  j["max_position_embeddings"] = c.max_position_embeddings;
  if (c.index_n_heads != 0) j["index_n_heads"] = c.index_n_heads;
  if (c.index_head_dim != 0) j["index_head_dim"] = c.index_head_dim;
  if (c.index_topk != 0) j["index_topk"] = c.index_topk;
  j["n_routed_experts"] = c.n_routed_experts;
  j["n_shared_experts"] = c.n_shared_experts;
  j["num_experts_per_tok"] = c.num_experts_per_tok;
  j["moe_intermediate_size"] = c.moe_intermediate_size;
  j["scoring_func"] = "sqrtsoftplus";
  j["routed_scaling_factor"] = shortest(c.routed_scaling_factor);
  j["norm_topk_prob"] = true;
  j["topk_method"] = "noaux_tc";
  if (c.swiglu_limit > 0.0f) j["swiglu_limit"] = shortest(c.swiglu_limit);
  if (c.clamp_shared_experts != (c.swiglu_limit > 0.0f)) {
    j["clamp_shared_experts"] = c.clamp_shared_experts;
  }
  j["hidden_act"] = "silu";
  j["hc_mult"] = c.hc_mult;
  j["hc_sinkhorn_iters"] = c.hc_sinkhorn_iters;
  j["hc_eps"] = shortest(c.hc_eps);
  j["rms_norm_eps"] = shortest(c.rms_norm_eps);
  if (c.quantization_config) {
    j["quantization_config"] = {{"quant_method", c.quantization_config->quant_method},
                                {"fmt", c.quantization_config->fmt},
                                {"scale_fmt", c.quantization_config->scale_fmt},
                                {"activation_scheme", c.quantization_config->activation_scheme},
                                {"weight_block_size", {128, 128}}};
  }
  if (c.expert_dtype != ExpertDType::unstated) j["expert_dtype"] = to_string(c.expert_dtype);
  j["tie_word_embeddings"] = false;
  j["attention_bias"] = false;
  j["attention_dropout"] = 0.0;
  j["initializer_range"] = c.initializer_range;
  j["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_id.size() == 1) {
    j["eos_token_id"] = c.eos_token_id[0];
  } else {
    j["eos_token_id"] = c.eos_token_id;
  }
  j["use_cache"] = true;
  return j.dump(2) + "\n";
}

}  // namespace hadal::model
