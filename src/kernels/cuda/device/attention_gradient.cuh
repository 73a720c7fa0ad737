// What the gradients of attention work on. Queries are rows (token, head) of a sequence; keys are
// rows of two matrices, the window's and the entries', and a query sees an interval of either,
// entries with a list only where it has a bit.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/device/launch.cuh"

namespace hadal::kernels::cuda {

enum class KeySource : std::int32_t { window, entries };

struct GradientSequence {
  std::int64_t begin;                  // token
  std::int64_t window_row, entry_row;  // first rows in the matrices of keys
  std::int64_t drow, dentry;           // rows of drows, dentries of its first changeable keys
  std::int32_t n_tokens, n_entries;    // entries: visible to the last token
  std::int32_t start;                  // position of its first token
  std::int32_t first;                  // position of its first window row
  std::int32_t constant_rows, constant_entries;  // leading keys that want no gradient
  std::int32_t listed;                           // whether entries are seen by the bits of `lists`
};

// C is the type of the matrices of keys and of d_o.
struct GradientProblem {
  const GradientSequence* sequences;
  const void* q;                         // [n_tokens * n_heads, width]
  const void* d_o;                       // [n_tokens * n_heads, width]
  const float *log_sum_exp, *delta;      // [n_tokens * n_heads]
  const void *window_rows, *entry_rows;  // [.., width]
  const std::uint32_t* lists;            // [n_tokens, list_words]: bit e of a token's words
  std::int32_t list_words;
  std::int32_t n_heads, width, window, ratio;
  float scale;
  float *dq, *drows, *dentries;  // null: not wanted
};

struct KeyInterval {
  std::int32_t begin, end;
};
// Of the keys that token i of the sequence may see, as rows of the sequence's own keys.
__device__ __forceinline__ KeyInterval keys_of(const GradientProblem& p, const GradientSequence& s,
                                               KeySource source, std::int32_t i) {
  const std::int32_t position = s.start + i;
  if (source == KeySource::window) {
    return {max(0, position - p.window + 1) - s.first, position + 1 - s.first};
  }
  if (s.listed != 0) return {0, s.n_entries};
  return {0, min(s.n_entries, (position + 1) / p.ratio)};
}

// Bit k: token i sees key0 + k.
__device__ __forceinline__ std::uint64_t visible_keys(const GradientProblem& p,
                                                      const GradientSequence& s, KeySource source,
                                                      std::int32_t i, std::int32_t key0) {
  const KeyInterval keys = keys_of(p, s, source, i);
  const auto below = [](std::int32_t n) {
    return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << max(n, 0)) - 1;
  };
  std::uint64_t bits = below(keys.end - key0) & ~below(keys.begin - key0);
  if (source == KeySource::entries && s.listed != 0 && bits != 0) {
    const std::uint32_t* list = p.lists + (s.begin + i) * p.list_words;
    const std::int32_t word = key0 / 32, shift = key0 % 32;
    const auto at = [&](std::int32_t w) {
      return w < p.list_words ? std::uint64_t{list[w]} : std::uint64_t{0};
    };
    std::uint64_t listed = (at(word) | at(word + 1) << 32) >> shift;
    if (shift != 0) listed |= at(word + 2) << (64 - shift);
    bits &= listed;
  }
  return bits;
}

// The gradients of one key's tile from some queries of its sequence.
struct KeyTile {
  std::int32_t sequence;
  KeySource source;
  std::int32_t key0, n_keys;        // of the sequence's own keys
  std::int32_t row_begin, row_end;  // (token, head) rows of the sequence
  float* out;                       // [n_keys, width]
};
// Tokens or rows of a sequence.
struct QueryTile {
  std::int32_t sequence, row0;
};

inline constexpr int kGradientTile = 64;  // rows and keys of a tile on tensor cores

// bf16 queries, keys and d_o on tensor cores.
[[nodiscard]] bool has_mma_gradient(std::int64_t width);
void attention_query_gradient_mma(Stream& stream, const GradientProblem& problem,
                                  std::span<const QueryTile> tiles);
void attention_key_gradient_mma(Stream& stream, const GradientProblem& problem,
                                std::span<const KeyTile> tiles);

}  // namespace hadal::kernels::cuda
