#pragma once

#include <vector>

#include "model/kv_state.h"
#include "model/token_batch.h"
#include "ops/exec_context.h"

namespace hadal::model {

// What every layer of one forward pass shares.
struct Step {
  const TokenBatch& batch;
  KvState& kv;
  Tensor token_ids;                 // [n_tokens] i32
  std::vector<Tensor> rope_tables;  // one per kind of rotation in the model, [n_tokens, pairs, 2]
};

}  // namespace hadal::model
