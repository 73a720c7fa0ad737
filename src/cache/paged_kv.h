// cache: the serving answer to KvState. It knows pages and bytes, and no layer's arithmetic.
#pragma once

#include <memory>
#include <vector>

#include "core/numerics.h"
#include "model/config.h"
#include "model/kv_state.h"

namespace hadal::cache {

struct PagedKvOptions {
  Numerics numerics = Numerics::official;
  // Positions that may be forgotten again: the rings keep so many rows more.
  std::int64_t rollback_tokens = 0;
  // Tokens that one page of compressed entries covers; rounded up to a multiple of every ratio.
  std::int64_t page_tokens = 1024;
};

// Heterogeneous KV of any number of sequences: per layer a ring of window rows and the tails of
// its compressors, both of fixed size, and pages of compressed entries and indexer keys that grow
// with the text.  Source: DeepSeek-V4 §3.5.1; architecture.md §4.
class PagedKv final : public model::KvState {
 public:
  PagedKv(const model::Config& config, const PagedKvOptions& options);

  // A fresh sequence and its slot; close gives its memory back.
  [[nodiscard]] std::int64_t open();
  void close(std::int64_t slot);

  [[nodiscard]] const KvRowFormat& entry_format() const override { return entry_format_; }
  [[nodiscard]] const KvRowFormat& index_format() const override { return index_format_; }
  [[nodiscard]] model::LayerHistory history(std::int64_t layer, std::int64_t slot,
                                            std::int64_t end_position) override;

  [[nodiscard]] std::int64_t rollback_tokens() const { return options_.rollback_tokens; }
  // Allocated for a slot, split as accounting does: rings and tails, and pages.
  struct Bytes {
    std::size_t window = 0, tails = 0, entries = 0, index_keys = 0;
    [[nodiscard]] std::size_t total() const { return window + tails + entries + index_keys; }
  };
  [[nodiscard]] Bytes bytes(std::int64_t slot) const;

 private:
  struct Pages {
    std::vector<Tensor> storage;
    std::vector<std::byte*> pages;
  };
  struct LayerState {
    Pages window;  // one page, the ring
    Pages entries, index_keys;
    Tensor tail_kv, tail_gate, index_tail_kv, index_tail_gate;
  };
  using SequenceState = std::vector<LayerState>;

  [[nodiscard]] std::unique_ptr<SequenceState> make_state() const;
  void grow(Pages& pages, const KvRowFormat& format, std::int64_t rows_per_page,
            std::int64_t n_rows) const;

  model::Config config_;
  PagedKvOptions options_;
  KvRowFormat entry_format_, index_format_;
  std::int64_t ring_rows_;
  std::vector<std::unique_ptr<SequenceState>> slots_;  // null: free
};

}  // namespace hadal::cache
