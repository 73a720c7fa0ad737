#pragma once

#include "kernels/compress_kv.h"
#include "kernels/kv_rows.h"

namespace hadal::model {

// What one layer keeps of one sequence. Everything is found by position, so forgetting the newest
// tokens (a rejected draft) is continuing from an earlier position, as far as the rings reach.
// Source: architecture.md §4.1.
struct LayerHistory {
  PagedRows window;            // position p in slot p % ring_rows
  std::int64_t ring_rows = 0;  // at least the sliding window
  PagedRows entries;           // compressed entry s in row s
  PagedRows index_keys;        // its indexer key
  CompressorTail tail;         // of the main compressor
  CompressorTail index_tail;   // of the indexer's
  // Entries and keys [0, frozen_entries) are final: running their tokens again reads but never
  // writes them. Others may share them, and a replay that fills a window may not know them yet.
  std::int64_t frozen_entries = 0;
};

// What attention asks of its past. The model owns the interface; caches implement it.
class KvState {
 public:
  virtual ~KvState() = default;
  [[nodiscard]] virtual const KvRowFormat& entry_format() const = 0;
  [[nodiscard]] virtual const KvRowFormat& index_format() const = 0;
  // The history of `slot` in `layer`, with room for the entries of positions [0, end_position).
  // Views stay valid until the slot is grown or closed.
  [[nodiscard]] virtual LayerHistory history(std::int64_t layer, std::int64_t slot,
                                             std::int64_t end_position) = 0;
};

}  // namespace hadal::model
