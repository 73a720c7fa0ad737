#pragma once

#include "model/compressor.h"

namespace hadal::model {

// Scores compressed entries with small keys and keeps index_topk a token. With a cache of FP4 keys
// both sides pass a Hadamard rotation first; a cache of f32 keys needs none.
// Source: DeepSeek-V4 §2.3.1 eq. 13-16; architecture.md §3.6.
class Indexer {
 public:
  // `prefix` names the weights: "layers.2.attn.indexer".
  Indexer(const Config& config, const LayerSpec& layer, const BoundWeights& weights,
          const std::string& prefix, const ops::RopeFrequencies& rope);

  struct Wanted {
    bool selects = true;  // the best entries of every token
    bool scored = false;  // what they are scored with; only then does anything here learn
  };
  struct Output {
    Tensor selected;  // [n_tokens, index_topk] i32; empty: every token sees all of its entries
    // Where `scored`, as ops::IndexedAttention has them.
    Tensor queries, weights, keys;
  };
  // Appends this step's keys, then does what is wanted.
  //   x        [n_tokens, hidden]       attention's input
  //   q_latent [n_tokens, q_lora_rank]  the shared low-rank query, normed
  [[nodiscard]] Output forward(ExecContext& ctx, const Step& step, const Tensor& x,
                               const Tensor& q_latent, std::span<const LayerHistory> histories,
                               const Tensor& rope_table, Wanted wanted) const;

 private:
  Compressor compressor_;
  QuantTensor q_proj_;        // [n_heads*width, q_lora_rank]
  QuantTensor weights_proj_;  // [n_heads, hidden]
  std::int64_t n_heads_, width_, topk_, ratio_;
};

}  // namespace hadal::model
