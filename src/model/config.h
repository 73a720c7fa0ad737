// What config.json says, checked once, and what follows from it for every layer. Nobody else
// compares a ratio or a layer index.
// model: the paper, in order. It owns shapes, names and the forward pass; it refuses to know about
// caches, schedulers, prompts and sockets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace hadal::model {

// How a layer sees the past beyond its window.  Source: DeepSeek-V4 §2.3.
enum class LayerKind : std::uint8_t {
  window,  // compress_ratio 0: the sliding window alone
  csa,     // compress_ratio 4: overlapping compressed entries, the indexer selects index_topk
  hca,     // any other ratio: compressed entries without overlap, all of them attended
};
[[nodiscard]] const char* to_string(LayerKind kind);  // "window", "csa", "hca"

inline constexpr std::int64_t kCsaRatio = 4;

// Source: architecture.md §1.3. No mscale: neither cos, sin nor the softmax scale has a factor.
struct YarnParams {
  double factor = 1.0;
  std::int64_t original_max_position_embeddings = 0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  friend bool operator==(const YarnParams&, const YarnParams&) = default;
};

struct RopeSpec {
  double theta = 10000.0;
  std::optional<YarnParams> yarn;  // engaged on compressed layers only
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

// One block: layers 0 .. num_hidden_layers-1, then the MTP blocks.
struct LayerSpec {
  std::int64_t compress_ratio = 0;
  LayerKind kind = LayerKind::window;
  bool hash_routed = false;  // experts from tid2eid; otherwise gate.bias and top-k
  RopeSpec rope;             // of q, window kv, compressed kv and indexer alike

  [[nodiscard]] bool has_compressor() const { return kind != LayerKind::window; }
  [[nodiscard]] bool has_indexer() const { return kind == LayerKind::csa; }
  // Rows of wkv/wgate and columns of ape per entry column: CSA keeps a series for the window
  // before and one for the own window, HCA one.
  [[nodiscard]] std::int64_t n_series() const { return kind == LayerKind::csa ? 2 : 1; }
  friend bool operator==(const LayerSpec&, const LayerSpec&) = default;
};

// quantization_config of the file. Only the published scheme exists: e4m3 weights in 128x128
// blocks, activations quantised on the fly.
struct QuantizationConfig {
  std::string quant_method = "fp8";
  std::string fmt = "e4m3";
  std::string scale_fmt = "ue8m0";
  std::string activation_scheme = "dynamic";
  friend bool operator==(const QuantizationConfig&, const QuantizationConfig&) = default;
};

// Storage of the routed experts as the config announces it. The tensors' own dtype decides
// (architecture.md §2.6); this is what a writer puts and what accounting assumes.
enum class ExpertDType : std::uint8_t { unstated, fp4, fp8, bf16, f32 };
[[nodiscard]] const char* to_string(ExpertDType dtype);

// Fields carry the official config.json's own keys.  Source: architecture.md §1.1.
// A Config that parse_config or load_config returned is consistent; one filled by hand becomes so
// by finalize().
struct Config {
  std::string source;  // file name, for messages

  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;         // MTP excluded
  std::int64_t num_hash_layers = 0;           // layers below it route by token id
  std::int64_t num_nextn_predict_layers = 0;  // MTP blocks
  std::int64_t max_position_embeddings = 0;   // the context limit, in tokens

  std::int64_t num_attention_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;  // the last ones of head_dim
  std::int64_t q_lora_rank = 0;
  std::int64_t o_groups = 0;
  std::int64_t o_lora_rank = 0;               // per group
  std::int64_t sliding_window = 0;            // tokens, self included
  std::vector<std::int64_t> compress_ratios;  // >= num_hidden_layers + num_nextn_predict_layers
  double rope_theta = 10000.0;
  double compress_rope_theta = 160000.0;
  std::optional<YarnParams> rope_scaling;  // of compressed layers

  std::int64_t index_n_heads = 0;  // the three are 0 when no layer is CSA and the file omits them
  std::int64_t index_head_dim = 0;
  std::int64_t index_topk = 0;

  std::int64_t n_routed_experts = 0;
  std::int64_t n_shared_experts = 1;
  std::int64_t num_experts_per_tok = 0;
  std::int64_t moe_intermediate_size = 0;  // of routed and shared experts
  float routed_scaling_factor = 1.0f;
  float swiglu_limit = 0.0f;          // 0: no clamp
  bool clamp_shared_experts = false;  // ours; true by default when swiglu_limit > 0

  std::int64_t hc_mult = 0;
  std::int64_t hc_sinkhorn_iters = 0;
  float hc_eps = 1e-6f;
  float rms_norm_eps = 1e-6f;

  double initializer_range = 0.02;
  std::int64_t bos_token_id = 0;
  std::vector<std::int64_t> eos_token_id{1};
  std::optional<QuantizationConfig> quantization_config;  // absent: dense weights are bf16 or f32
  ExpertDType expert_dtype = ExpertDType::unstated;

  // Derived by finalize().
  std::vector<LayerSpec> layers;   // num_hidden_layers + num_nextn_predict_layers
  std::vector<std::string> notes;  // what the file asks for and hadal leaves out, a sentence each

  [[nodiscard]] std::int64_t nope_head_dim() const { return head_dim - qk_rope_head_dim; }
  [[nodiscard]] std::int64_t q_dim() const { return num_attention_heads * head_dim; }
  [[nodiscard]] std::int64_t o_group_in() const { return q_dim() / o_groups; }  // columns of wo_a
  [[nodiscard]] std::int64_t o_rank() const { return o_groups * o_lora_rank; }  // rows of wo_a
  [[nodiscard]] std::int64_t index_q_dim() const { return index_n_heads * index_head_dim; }
  [[nodiscard]] std::int64_t hc_dim() const { return hc_mult * hidden_size; }
  [[nodiscard]] std::int64_t hc_mix() const { return (2 + hc_mult) * hc_mult; }  // pre, post, comb
  [[nodiscard]] const LayerSpec& layer(std::int64_t i) const {
    return layers[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] const LayerSpec& mtp_layer(std::int64_t i) const {
    return layer(num_hidden_layers + i);
  }
  [[nodiscard]] std::int64_t count(LayerKind kind) const;  // among the main layers
  [[nodiscard]] bool has_csa() const;                      // MTP blocks included

  // Why the official numerics cannot run with these sizes (a KV entry's blocks of 64, the
  // indexer's Hadamard transform); empty when they can. fp32 numerics always can.
  [[nodiscard]] std::string official_numerics_obstacle() const;

  // Checks every field and fills `layers`. Throws Error invalid_argument: key, found, wanted.
  void finalize();
};

// Reads the root config.json of a published checkpoint, its inference/config.json, or the form
// that Hugging Face saves (layer_types, rope_parameters); which one is told by its keys.
// Unknown keys are ignored; unknown values of known keys are refused.
// Throws Error: corrupt_data when the text is not JSON or a key is missing or of a wrong type,
// invalid_argument for an impossible size, unsupported for another model or scheme.
[[nodiscard]] Config parse_config(std::string_view json_text, std::string source_name);

// `path` is config.json or a directory that holds one. Throws not_found besides the above.
[[nodiscard]] Config load_config(const Path& path);

// The official root form; parse_config(to_json(c)) equals c.
[[nodiscard]] std::string to_json(const Config& config);

}  // namespace hadal::model
