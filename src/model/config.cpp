#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace hadal::model {

namespace {

// Bounds are far above any released model. They keep every product of sizes inside 64 bits and
// every list that follows from a config short enough to build.
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 18;
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxExpertMatrices = std::int64_t{1} << 21;  // layers x experts
constexpr double kMaxParameters = 1e15;

class Checker {
 public:
  explicit Checker(const std::string& source) : source_(source) {}

  [[noreturn]] void refuse(const std::string& sentence) const {
    throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}", source_, sentence));
  }
  void range(const char* key, std::int64_t value, std::int64_t low, std::int64_t high) const {
    if (value < low || value > high) {
      refuse(fmt::format("{} is {}, wanted {} to {}", key, value, low, high));
    }
  }
  void positive(const char* key, double value) const {
    if (!(value > 0.0) || !std::isfinite(value)) {
      refuse(fmt::format("{} is {}, wanted a positive number", key, value));
    }
  }

 private:
  const std::string& source_;
};

LayerKind kind_of(std::int64_t compress_ratio) {
  if (compress_ratio == 0) return LayerKind::window;
  return compress_ratio == kCsaRatio ? LayerKind::csa : LayerKind::hca;
}

void check_sizes(const Config& c, const Checker& check) {
  check.range("vocab_size", c.vocab_size, 1, std::int64_t{1} << 24);
  check.range("hidden_size", c.hidden_size, 1, kMaxWidth);
  check.range("num_hidden_layers", c.num_hidden_layers, 1, kMaxLayers);
  check.range("num_hash_layers", c.num_hash_layers, 0, c.num_hidden_layers);
  check.range("num_nextn_predict_layers", c.num_nextn_predict_layers, 0, 64);
  check.range("max_position_embeddings", c.max_position_embeddings, 1, std::int64_t{1} << 32);
}

void check_attention(const Config& c, const Checker& check) {
  check.range("num_attention_heads", c.num_attention_heads, 1, 4096);
  check.range("head_dim", c.head_dim, 2, 8192);
  check.range("qk_rope_head_dim", c.qk_rope_head_dim, 2, c.head_dim);
  if (c.qk_rope_head_dim % 2 != 0) {
    check.refuse(fmt::format("qk_rope_head_dim is {}, wanted an even number: rope rotates pairs",
                             c.qk_rope_head_dim));
  }
  check.range("q_lora_rank", c.q_lora_rank, 1, kMaxWidth);
  check.range("o_groups", c.o_groups, 1, c.num_attention_heads);
  if (c.num_attention_heads % c.o_groups != 0) {
    check.refuse(fmt::format("num_attention_heads is {}, wanted a multiple of o_groups = {}",
                             c.num_attention_heads, c.o_groups));
  }
  check.range("o_lora_rank", c.o_lora_rank, 1, kMaxWidth);
  check.range("sliding_window", c.sliding_window, 1, std::int64_t{1} << 24);

  const std::int64_t n_blocks = c.num_hidden_layers + c.num_nextn_predict_layers;
  const auto n_ratios = static_cast<std::int64_t>(c.compress_ratios.size());
  if (n_ratios < n_blocks) {
    check.refuse(
        fmt::format("compress_ratios has {} entries, wanted at least {}: one for each of "
                    "{} layers and {} MTP blocks",
                    n_ratios, n_blocks, c.num_hidden_layers, c.num_nextn_predict_layers));
  }
  for (std::int64_t i = 0; i < n_ratios; ++i) {
    check.range(fmt::format("compress_ratios[{}]", i).c_str(),
                c.compress_ratios[static_cast<std::size_t>(i)], 0, std::int64_t{1} << 24);
  }
}

void check_rope(const Config& c, const Checker& check) {
  // A base of at most 1 would turn the slow dimensions into the fast ones, and YaRN divides by
  // its logarithm.
  for (const auto& [key, theta] : {std::pair{"rope_theta", c.rope_theta},
                                   std::pair{"compress_rope_theta", c.compress_rope_theta}}) {
    if (!(theta > 1.0) || !(theta < 1e30)) {
      check.refuse(fmt::format("{} is {}, wanted a number above 1", key, theta));
    }
  }
  if (!c.rope_scaling) return;
  const YarnParams& yarn = *c.rope_scaling;
  if (!(yarn.factor >= 1.0) || !(yarn.factor < 1e9)) {
    check.refuse(fmt::format("rope_scaling.factor is {}, wanted at least 1", yarn.factor));
  }
  check.range("rope_scaling.original_max_position_embeddings",
              yarn.original_max_position_embeddings, 1, std::int64_t{1} << 32);
  check.positive("rope_scaling.beta_slow", yarn.beta_slow);
  if (!(yarn.beta_fast >= yarn.beta_slow) || !std::isfinite(yarn.beta_fast)) {
    check.refuse(fmt::format("rope_scaling.beta_fast is {}, wanted at least beta_slow = {}",
                             yarn.beta_fast, yarn.beta_slow));
  }
}

void check_indexer(const Config& c, const Checker& check) {
  const std::int64_t low = c.has_csa() ? 1 : 0;
  check.range("index_n_heads", c.index_n_heads, low, 4096);
  check.range("index_head_dim", c.index_head_dim, low, 8192);
  check.range("index_topk", c.index_topk, low, std::int64_t{1} << 24);
  if (c.has_csa() && c.index_head_dim < c.qk_rope_head_dim) {
    check.refuse(
        fmt::format("index_head_dim is {}, wanted at least qk_rope_head_dim = {}: the "
                    "indexer rotates as many of its dimensions",
                    c.index_head_dim, c.qk_rope_head_dim));
  }
}

void check_experts(const Config& c, const Checker& check) {
  check.range("n_routed_experts", c.n_routed_experts, 1, 16384);
  check.range("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts);
  if (c.n_shared_experts != 1) {
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: n_shared_experts is {}; DeepSeek-V4 has exactly 1", c.source,
                            c.n_shared_experts));
  }
  check.range("moe_intermediate_size", c.moe_intermediate_size, 1, kMaxWidth);
  check.positive("routed_scaling_factor", c.routed_scaling_factor);
  if (!(c.swiglu_limit >= 0.0f) || !std::isfinite(c.swiglu_limit)) {
    check.refuse(fmt::format("swiglu_limit is {}, wanted 0 (no clamp) or more", c.swiglu_limit));
  }
  if (c.clamp_shared_experts && c.swiglu_limit == 0.0f) {
    check.refuse("clamp_shared_experts is true, but swiglu_limit gives no limit to clamp to");
  }
  const std::int64_t n_blocks = c.num_hidden_layers + c.num_nextn_predict_layers;
  if (n_blocks * c.n_routed_experts > kMaxExpertMatrices) {
    check.refuse(fmt::format("{} blocks of {} experts are {} experts, wanted at most {}", n_blocks,
                             c.n_routed_experts, n_blocks * c.n_routed_experts,
                             kMaxExpertMatrices));
  }
  const double parameters = 3.0 * static_cast<double>(n_blocks * c.n_routed_experts) *
                            static_cast<double>(c.moe_intermediate_size * c.hidden_size);
  if (parameters > kMaxParameters) {
    check.refuse(fmt::format("the experts have {:.1e} parameters, wanted at most {:.0e}",
                             parameters, kMaxParameters));
  }
}

void check_streams_and_tokens(const Config& c, const Checker& check) {
  check.range("hc_mult", c.hc_mult, 1, 16);
  check.range("hc_sinkhorn_iters", c.hc_sinkhorn_iters, 1, 10000);
  check.positive("hc_eps", c.hc_eps);
  check.positive("rms_norm_eps", c.rms_norm_eps);
  check.range("bos_token_id", c.bos_token_id, 0, c.vocab_size - 1);
  for (const std::int64_t id : c.eos_token_id) {
    check.range("eos_token_id", id, 0, c.vocab_size - 1);
  }
}

}  // namespace

const char* to_string(LayerKind kind) {
  switch (kind) {
    case LayerKind::window:
      return "window";
    case LayerKind::csa:
      return "csa";
    case LayerKind::hca:
      return "hca";
  }
  return "?";
}

const char* to_string(ExpertDType dtype) {
  switch (dtype) {
    case ExpertDType::unstated:
      return "unstated";
    case ExpertDType::fp4:
      return "fp4";
    case ExpertDType::fp8:
      return "fp8";
    case ExpertDType::bf16:
      return "bf16";
    case ExpertDType::f32:
      return "f32";
  }
  return "?";
}

std::int64_t Config::count(LayerKind kind) const {
  return std::count_if(layers.begin(), layers.begin() + num_hidden_layers,
                       [kind](const LayerSpec& l) { return l.kind == kind; });
}

bool Config::has_csa() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerSpec& l) { return l.kind == LayerKind::csa; });
}

std::string Config::official_numerics_obstacle() const {
  if (nope_head_dim() % 64 != 0) {
    return fmt::format(
        "head_dim - qk_rope_head_dim is {}, and a KV entry is quantised in blocks of 64",
        nope_head_dim());
  }
  if (has_csa() && (index_head_dim % 32 != 0 || (index_head_dim & (index_head_dim - 1)) != 0)) {
    return fmt::format(
        "index_head_dim is {}, and indexer keys are Hadamard transformed (a power of two) and "
        "quantised in blocks of 32",
        index_head_dim);
  }
  return {};
}

void Config::finalize() {
  const Checker check(source);
  check_sizes(*this, check);
  check_attention(*this, check);
  check_rope(*this, check);

  layers.clear();
  const std::int64_t n_blocks = num_hidden_layers + num_nextn_predict_layers;
  for (std::int64_t i = 0; i < n_blocks; ++i) {
    LayerSpec layer;
    layer.compress_ratio = compress_ratios[static_cast<std::size_t>(i)];
    layer.kind = kind_of(layer.compress_ratio);
    layer.hash_routed = i < num_hash_layers;
    layer.rope.theta = layer.has_compressor() ? compress_rope_theta : rope_theta;
    if (layer.has_compressor()) layer.rope.yarn = rope_scaling;
    layers.push_back(layer);
  }

  check_indexer(*this, check);
  check_experts(*this, check);
  check_streams_and_tokens(*this, check);
}

}  // namespace hadal::model
