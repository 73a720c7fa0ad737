#include "train/hash_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace hadal::train {

namespace {

// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
std::uint64_t split_mix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

struct Bid {
  std::int64_t load;
  std::uint64_t tie;
  std::int32_t expert;
  friend auto operator<=>(const Bid&, const Bid&) = default;
};

}  // namespace

Tensor build_hash_table(const HashTableSpec& spec, std::span<const std::int64_t> counts) {
  const std::int64_t n_tokens = spec.vocab_size, k = spec.n_experts_per_token;
  HADAL_CHECK(n_tokens >= 0 && k >= 1 && k <= spec.n_experts);
  if (!counts.empty() && static_cast<std::int64_t>(counts.size()) != n_tokens) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("hash table: {} token counts for a vocabulary of {}; count with the "
                            "tokenizer of this model",
                            counts.size(), n_tokens));
  }
  const auto count = [&](std::int64_t token) {
    return counts.empty() ? std::int64_t{1} : 1 + counts[static_cast<std::size_t>(token)];
  };
  std::vector<std::int64_t> order(static_cast<std::size_t>(n_tokens));
  std::iota(order.begin(), order.end(), 0);
  for (const std::int64_t token : order) {
    if (count(token) < 1) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("hash table: token {} has the count {}; wanted 0 or more", token,
                              count(token) - 1));
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return count(a) > count(b); });

  Tensor table = Tensor::empty({n_tokens, k}, DType::i32);
  std::vector<std::int64_t> load(static_cast<std::size_t>(spec.n_experts), 0);
  std::vector<Bid> bids(load.size());
  const std::uint64_t layer_key =
      split_mix64(split_mix64(spec.seed) + static_cast<std::uint64_t>(spec.layer));
  for (const std::int64_t token : order) {
    const std::uint64_t key = split_mix64(layer_key + static_cast<std::uint64_t>(token));
    for (std::size_t e = 0; e < load.size(); ++e) {
      bids[e] = {load[e], split_mix64(key + e), static_cast<std::int32_t>(e)};
    }
    std::nth_element(bids.begin(), bids.begin() + (k - 1), bids.end());
    std::int32_t* row = table.data<std::int32_t>() + token * k;
    for (std::int64_t j = 0; j < k; ++j) {
      row[j] = bids[static_cast<std::size_t>(j)].expert;
      load[static_cast<std::size_t>(row[j])] += count(token);
    }
    std::sort(row, row + k);
  }
  return table;
}

}  // namespace hadal::train
