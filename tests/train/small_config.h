// Models small enough to train in a test, with a layer of every kind and an MTP block.
#pragma once

#include "model/config.h"

namespace hadal::test {

inline model::Config small_config() {
  model::Config c;
  c.source = "small";
  c.vocab_size = 96;
  c.hidden_size = 32;
  c.num_hidden_layers = 4;
  c.num_hash_layers = 1;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 256;
  c.num_attention_heads = 4;
  c.head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.q_lora_rank = 24;
  c.o_groups = 2;
  c.o_lora_rank = 8;
  c.sliding_window = 16;
  c.compress_ratios = {0, 4, 16, 4, 0};
  c.index_n_heads = 2;
  c.index_head_dim = 16;
  c.index_topk = 4;
  c.n_routed_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 16;
  c.routed_scaling_factor = 1.5f;
  c.hc_mult = 4;
  c.hc_sinkhorn_iters = 20;
  c.finalize();
  return c;
}

}  // namespace hadal::test
