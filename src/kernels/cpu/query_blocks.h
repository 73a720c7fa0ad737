// Attention with a list of entries per query, as dense products: consecutive queries share one
// gathered set of entries and a mask. Internal to the CPU backend's gradients.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "kernels/cpu/gemm.h"

namespace hadal::kernels::cpu {

// Queries whose blocks are worked on at a time: bounds the memory of their gathered gradients.
inline constexpr std::int64_t kListedQueries = 32;
// Entries that a block of queries meets at a time.
inline constexpr std::int64_t kEntryTile = 512;

// Consecutive queries and the entries that any of them lists.
struct QueryBlock {
  std::int64_t begin = 0, end = 0;    // rows of `selected`
  std::vector<std::int32_t> entries;  // ascending
  std::vector<std::uint8_t> listed;   // [end - begin, entries.size()]: 1 where the query lists it

  [[nodiscard]] std::int64_t n_entries() const { return static_cast<std::int64_t>(entries.size()); }
};

// Blocks that cover the rows [begin, end) of selected [n_tokens, topk] (ascending, -1 at the end).
// Queries with much the same lists stay together, one like no other is a block of its own: what is
// cheaper when every query is `rows_per_query` rows of a product.
[[nodiscard]] std::vector<QueryBlock> blocks_of_lists(const TensorView& selected,
                                                      std::int64_t begin, std::int64_t end,
                                                      std::int64_t rows_per_query);

// The block's rows of `rows` [n, width], in order.
void gather_entries(const QueryBlock& block, const float* rows, std::int64_t width, float* out);

// Calls compute(block, gradient) for each block, on any thread, which writes the gradient
// [block.n_entries(), width] of its gathered entries; then adds those, in the order of the blocks,
// to the rows entry - first of `to`. Entries below `first` are constants.
template <class Compute>
void add_block_gradients(ThreadPool& pool, const std::vector<QueryBlock>& blocks,
                         std::int64_t width, std::int64_t first, float* to, Compute&& compute) {
  std::vector<std::vector<float>> gradients(blocks.size());
  const auto run = [&](std::size_t i) {
    gradients[i].resize(static_cast<std::size_t>(blocks[i].n_entries() * width));
    compute(blocks[i], gradients[i].data());
  };
  if (blocks.size() == 1) {
    run(0);  // not inside a loop, so that its products use the threads
  } else {
    pool.parallel_for(static_cast<std::int64_t>(blocks.size()), 1,
                      [&](std::int64_t begin, std::int64_t end) {
                        for (; begin < end; ++begin) run(static_cast<std::size_t>(begin));
                      });
  }
  if (to == nullptr) return;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const QueryBlock& block = blocks[b];
    // Entries of one block differ.
    pool.parallel_for(block.n_entries(), 256, [&](std::int64_t begin, std::int64_t end) {
      for (; begin < end; ++begin) {
        const std::int64_t row = block.entries[static_cast<std::size_t>(begin)] - first;
        if (row < 0) continue;
        const float* from = gradients[b].data() + begin * width;
        float* sum = to + row * width;
        for (std::int64_t c = 0; c < width; ++c) sum[c] += from[c];
      }
    });
  }
}

}  // namespace hadal::kernels::cpu
