// What a model costs, from its config alone: parameters, bytes, KV cache, FLOPs of one token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/numerics.h"
#include "model/config.h"

namespace hadal::model {

// Multiplied parameters that one token meets, by part; MTP and the embedding gather excluded.
struct ActiveParameters {
  double attention = 0;   // wq_a, wq_b, wkv, wo_a, wo_b
  double compressor = 0;  // wkv and wgate, the indexer's included
  double indexer = 0;     // wq_b, weights_proj
  double routed = 0;      // num_experts_per_tok of them
  double shared = 0;
  double dense = 0;  // FFN layers without experts; DeepSeek-V4 has none
  double gate = 0;
  double hyper_connection = 0;
  double head = 0;
  [[nodiscard]] double total() const {
    return attention + compressor + indexer + routed + shared + dense + gate + hyper_connection +
           head;
  }
};

// FLOPs of one token at position `context` - 1, two a multiply-add.
// Source: architecture.md §4.3.
struct TokenFlops {
  double linear = 0;   // all matrices
  double core = 0;     // attention scores and values
  double indexer = 0;  // scores against every compressed key
  double core_weight = 2.0;
  double indexer_weight = 0.5;
  [[nodiscard]] double plain() const { return linear + core + indexer; }
  // bf16 counts double, FP8 once, FP4 half: the weighting that reproduces the paper's 27 and 10 %.
  [[nodiscard]] double fp8_equivalent() const {
    return linear + core_weight * core + indexer_weight * indexer;
  }
};

// KV memory of one sequence, in the main layers.
struct KvBytes {
  double per_token = 0;               // growth, averaged over the compression ratios
  std::int64_t fixed = 0;             // sliding windows, full
  std::int64_t compressor_state = 0;  // f32 rows of the windows not yet compressed
  std::int64_t growing = 0;           // compressed entries and index keys at `context`
  [[nodiscard]] std::int64_t total() const { return fixed + compressor_state + growing; }
};

[[nodiscard]] ActiveParameters active_parameters(const Config& config);
[[nodiscard]] TokenFlops token_flops(const Config& config, std::int64_t context);
[[nodiscard]] KvBytes kv_bytes(const Config& config, Numerics numerics, std::int64_t context);

// DeepSeek-V3.2, what the paper measures V4 against.  Source: its published config.json.
struct V32 {
  std::int64_t hidden_size = 7168, num_hidden_layers = 61, first_k_dense_replace = 3;
  std::int64_t num_attention_heads = 128, q_lora_rank = 1536, kv_lora_rank = 512;
  std::int64_t qk_nope_head_dim = 128, qk_rope_head_dim = 64, v_head_dim = 128;
  std::int64_t intermediate_size = 18432, moe_intermediate_size = 2048;
  std::int64_t n_routed_experts = 256, num_experts_per_tok = 8, vocab_size = 129280;
  std::int64_t index_n_heads = 64, index_head_dim = 128, index_topk = 2048;

  [[nodiscard]] ActiveParameters active_parameters() const;
  [[nodiscard]] TokenFlops token_flops(std::int64_t context) const;
  // The deployed FP8 cache: e4m3 latent with an f32 scale per 128, bf16 rope, FP8 index key with
  // one f32 scale.
  [[nodiscard]] std::int64_t kv_bytes_per_token() const;
};

struct StoredBytes {
  std::string format;  // "published", "fp8", "bf16", "f32"
  std::int64_t n_tensors = 0;
  std::int64_t bytes = 0;
};

// Everything `hadal inspect` says of a config.
struct Inspection {
  std::string source;
  std::int64_t context = 0;
  std::int64_t layers_window = 0, layers_csa = 0, layers_hca = 0, layers_mtp = 0;
  std::int64_t parameters = 0;      // main model; scales and tid2eid are not counted
  std::int64_t parameters_mtp = 0;  // on top
  ActiveParameters active;
  std::vector<StoredBytes> stored;  // MTP included; formats that the sizes allow
  KvBytes kv_official, kv_fp32;
  TokenFlops flops;
  TokenFlops v32_flops;            // at the same context
  std::int64_t v32_kv_bytes = 0;   // at the same context
  std::string official_obstacle;   // empty when the official numerics can run
  std::vector<std::string> notes;  // the config's own
  [[nodiscard]] double flops_ratio() const {
    return flops.fp8_equivalent() / v32_flops.fp8_equivalent();
  }
  // Growth against growth, as the paper counts it.
  [[nodiscard]] double kv_ratio() const;
};

// Throws invalid_argument when context is not in 1 .. 2^32.
[[nodiscard]] Inspection inspect(const Config& config, std::int64_t context);
[[nodiscard]] std::string format_inspection(const Inspection& inspection);  // a table, for people
[[nodiscard]] std::string inspection_json(const Inspection& inspection);

}  // namespace hadal::model
