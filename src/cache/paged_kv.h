// cache: the serving answer to KvState. It knows pages and bytes, and no layer's arithmetic.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_layout.h"
#include "cache/page_pool.h"
#include "core/numerics.h"
#include "model/config.h"
#include "model/kv_state.h"

namespace hadal::cache {

struct PagedKvOptions {
  Numerics numerics = Numerics::official;
  // Positions that may be forgotten again: the rings keep so many rows more.
  std::int64_t rollback_tokens = 0;
  // Tokens that one page covers; rounded up to a multiple of every ratio.
  std::int64_t page_tokens = 128;
  std::size_t page_budget_bytes = 0;  // of all pages, shared ones and cached ones too; 0: no limit
  DeviceMemory memory{};              // where pages and states are
};

// Heterogeneous KV of any number of sequences. Each has one state of fixed size, the rings of
// window rows and the tails of compressors of all layers, and pages of compressed entries and
// indexer keys that grow with the text. Used by one thread; only page references travel.
// Source: DeepSeek-V4 §3.5.1; architecture.md §4.
class PagedKv final : public model::KvState {
 public:
  PagedKv(const model::Config& config, const PagedKvOptions& options);

  // A fresh sequence and its slot, the state all zero; close gives its memory back.
  [[nodiscard]] std::int64_t open();
  void close(std::int64_t slot);

  [[nodiscard]] const KvRowFormat& entry_format() const override { return layout_.entry_format; }
  [[nodiscard]] const KvRowFormat& index_format() const override { return layout_.index_format; }
  // Throws out_of_memory when the page budget is spent; whoever reserved has the pages.
  [[nodiscard]] model::LayerHistory history(std::int64_t layer, std::int64_t slot,
                                            std::int64_t end_position) override;

  // Pages for positions [0, end_position). False, and nothing changed, when the budget is spent.
  [[nodiscard]] bool reserve(std::int64_t slot, std::int64_t end_position);
  [[nodiscard]] std::int64_t page_tokens() const { return layout_.page_tokens; }
  [[nodiscard]] std::int64_t pages_for(std::int64_t n_tokens) const {
    return (n_tokens + page_tokens() - 1) / page_tokens();
  }
  [[nodiscard]] std::int64_t n_pages_total() const { return pool_.n_total(); }
  [[nodiscard]] std::int64_t n_pages_used() const { return pool_.n_used(); }
  [[nodiscard]] std::int64_t n_pages_free() const { return pool_.n_free(); }
  // For whoever fills pages from elsewhere. Null when the budget is spent.
  [[nodiscard]] PageRef new_page() { return pool_.acquire(); }

  [[nodiscard]] std::span<const PageRef> pages(std::int64_t slot) const;
  // A slot without pages begins with these, shared, all of them full; they are frozen.
  void adopt(std::int64_t slot, std::span<const PageRef> pages);
  // Exchanges a full page for one of the same content, which gives back a private copy.
  void replace_page(std::int64_t slot, std::int64_t index, PageRef page);
  // Entries of [0, position) are final: running those positions again leaves them as they are. So
  // a page that others hold never changes, and a replay whose window is not yet filled does no
  // harm. Never goes back; a multiple of the page size.
  void freeze(std::int64_t slot, std::int64_t position);
  [[nodiscard]] std::int64_t frozen(std::int64_t slot) const;

  // What continuing at `position` needs besides the pages, independent of rollback_tokens.
  // `position` is where the slot stands, or up to rollback_tokens before. The rows of a draft block
  // are saved as they are: where it lags, its drafts are worse and nothing else.
  [[nodiscard]] std::vector<std::byte> save_state(std::int64_t slot, std::int64_t position) const;
  // Throws corrupt_data when the size is not that of a state at `position`.
  void restore_state(std::int64_t slot, std::int64_t position, std::span<const std::byte> state);
  [[nodiscard]] std::size_t saved_state_bytes(std::int64_t position) const {
    return layout_.saved_bytes(position);
  }

  // Names everything that the bytes of pages and saved states depend on.
  [[nodiscard]] std::string layout() const { return layout_.text(); }
  [[nodiscard]] std::int64_t rollback_tokens() const { return options_.rollback_tokens; }
  [[nodiscard]] std::int64_t sliding_window() const { return layout_.window_rows; }
  [[nodiscard]] std::int64_t n_layers() const {  // with MTP blocks
    return static_cast<std::int64_t>(layout_.layers.size());
  }

  [[nodiscard]] std::size_t page_bytes() const { return pool_.page_bytes(); }
  [[nodiscard]] std::size_t state_bytes() const { return layout_.state_bytes; }  // of a sequence
  [[nodiscard]] std::size_t page_bytes_held() const { return pool_.bytes_held(); }
  [[nodiscard]] std::size_t state_bytes_held() const;  // of open slots and those kept for reuse

  // Of one slot, split as accounting does: rings, tails, and its pages, whoever else shares them.
  struct Bytes {
    std::size_t window = 0, tails = 0, entries = 0, index_keys = 0;
    [[nodiscard]] std::size_t total() const { return window + tails + entries + index_keys; }
  };
  [[nodiscard]] Bytes bytes(std::int64_t slot) const;

 private:
  struct LayerPages {
    std::vector<std::byte*> entries, index_keys;  // of every page, this layer's part
  };
  struct Sequence {
    Tensor state;
    std::vector<PageRef> pages;
    std::vector<std::byte*> windows;  // of every layer
    std::vector<LayerPages> layers;
    std::vector<model::LayerHistory> histories;  // ready to hand out
    std::int64_t frozen = 0;
  };

  [[nodiscard]] Sequence& sequence(std::int64_t slot) const;
  void append_page(Sequence& s, PageRef page) const;
  void refresh(Sequence& s) const;

  PagedKvOptions options_;
  KvLayout layout_;
  PagePool pool_;
  std::vector<std::unique_ptr<Sequence>> slots_;  // null: free
  std::vector<Tensor> free_states_;
};

}  // namespace hadal::cache
