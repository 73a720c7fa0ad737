// Which experts a token is sent to in the layers that route by token id.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace hadal::train {

struct HashTableSpec {
  std::int64_t vocab_size = 0, n_experts = 0, n_experts_per_token = 0;
  std::uint64_t seed = 0;
  std::int64_t layer = 0;
};

// [vocab_size, n_experts_per_token] i32, distinct experts in every row, ascending. Tokens in order
// of falling count (then of id) each take the experts that have been promised the fewest tokens so
// far; ties go by SplitMix64 of (seed, layer, token, expert). So the load is even up to what cannot
// be helped: a token more frequent than 1 / n_experts of the corpus loads its experts alone.
// `counts` are occurrences in the corpus, one a token; empty: all tokens alike. Every count is
// taken one higher, so that tokens that were never seen are spread out too. Throws Error
// invalid_argument when counts has another length or a negative element. Source: training.md §2.5;
// how the published tables were made is not known.
[[nodiscard]] Tensor build_hash_table(const HashTableSpec& spec,
                                      std::span<const std::int64_t> counts);

}  // namespace hadal::train
