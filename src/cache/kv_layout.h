// Where every row lies: inside a page, inside the state of a sequence, and inside the bytes that
// are saved of a state.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/numerics.h"
#include "model/config.h"
#include "model/kv_state.h"

namespace hadal::cache {

// Offsets are in bytes; blocks begin at multiples of 64. MTP blocks count as layers.
struct KvLayout {
  struct Layer {
    std::int64_t ratio = 0;     // 0: a window alone
    std::int64_t n_series = 0;  // model::LayerSpec
    bool has_indexer = false;
    std::int64_t rows_per_page = 0;           // entries of one page
    std::size_t entries = 0, index_keys = 0;  // in a page
    std::int64_t tail_rows = 0;
    std::size_t window = 0, tail_kv = 0, tail_gate = 0;  // in a state
    std::size_t index_tail_kv = 0, index_tail_gate = 0;
  };

  // A page covers `page_tokens`, rounded up to a multiple of every ratio, so that it ends where
  // entries of all kinds end. Rings keep `rollback_tokens` more than continuing needs.
  KvLayout(const model::Config& config, Numerics numerics, std::int64_t page_tokens,
           std::int64_t rollback_tokens);

  KvRowFormat entry_format, index_format;
  std::int64_t head_dim, index_head_dim;
  std::int64_t page_tokens;
  std::int64_t window_rows, ring_rows;  // of a saved state; of a sequence's
  std::vector<Layer> layers;
  std::size_t page_bytes = 0, state_bytes = 0;  // with padding
  // Without padding, of a page and of a state.
  std::size_t entry_bytes = 0, index_key_bytes = 0, window_bytes = 0, tail_bytes = 0;

  // Names everything that the bytes of pages and saved states depend on.
  [[nodiscard]] std::string text() const;

  // A saved state at a position, layer after layer: the window rows of the last `window_rows`
  // positions before it (data, then scales, each row), then of every compressor the rows of the
  // previous window (CSA: the series that the next entry reads) and the pending rows, kv then gate.
  [[nodiscard]] std::size_t saved_bytes(std::int64_t position) const;
  void save(const std::byte* state, std::int64_t position, std::byte* out) const;
  void restore(std::byte* state, std::int64_t position, const std::byte* saved) const;

  [[nodiscard]] CompressorTail tail(const Layer& layer, std::byte* state) const;
  [[nodiscard]] CompressorTail index_tail(const Layer& layer, std::byte* state) const;
};

}  // namespace hadal::cache
