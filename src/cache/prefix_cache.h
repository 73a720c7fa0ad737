// Pasts that later prompts can start from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/paged_kv.h"
#include "core/token.h"

namespace hadal::cache {

class DiskStore;

// The state of a sequence at a page boundary: window rows and unfinished compressor rows. With the
// pages before it, all that is needed to go on from there.
struct Snapshot {
  std::int64_t position = 0;     // a multiple of the page size
  std::vector<std::byte> state;  // PagedKv::save_state
};

struct PrefixCacheOptions {
  std::size_t snapshot_bytes = std::size_t{256} << 20;  // budget of all snapshots in memory
  double snapshot_seconds = 600;  // unpinned snapshots unused for so long may go first
};

// Longest shared prefix at page boundaries. Two kinds of object: pages (immutable, shared by
// reference) in a tree keyed by the chain of their tokens, and snapshots at some nodes of it. A
// prefix is usable where a node has a snapshot and every page before it is still there. Used by
// one thread.  Source: DeepSeek-V4 §3.5; serving.md §5.3.
class PrefixCache {
 public:
  // `disk` may be null: then what is evicted is forgotten. Both must outlive this.
  PrefixCache(PagedKv& kv, const PrefixCacheOptions& options, DiskStore* disk = nullptr);
  ~PrefixCache();

  struct Hit {
    std::int64_t position = 0;   // 0: nothing is shared
    std::vector<PageRef> pages;  // of [0, position)
    std::shared_ptr<const Snapshot> snapshot;
    // Tokens shared with cached pages but behind the last usable snapshot: a snapshot at the page
    // boundary before this position would have served this prompt.
    std::int64_t shared_tokens = 0;
    bool from_disk = false;
  };
  // The longest usable prefix of `tokens` that leaves at least one token to run. Reads from disk
  // what memory lacks; files that fail a check are set aside and not used.
  [[nodiscard]] Hit find(const std::string& domain, std::span<const TokenId> tokens);

  // Remembers the full pages of `slot`, whose first tokens are `tokens`. Pages that are already
  // known are shared with the slot instead (PagedKv::replace_page).
  void insert(const std::string& domain, std::span<const TokenId> tokens, std::int64_t slot);
  // As insert, for tokens[0, snapshot->position), and keeps the snapshot there: the slot's
  // PagedKv::save_state at that position. The caller takes it when the slot passes the boundary and
  // may hand it over later.
  void insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                       std::int64_t slot, std::shared_ptr<const Snapshot> snapshot,
                       bool pinned = false);

  // Gives back at least `n_pages` pages that nobody but the cache uses, the longest unused leaves
  // first, never those of a pinned prefix or of `keep`. Returns how many.
  std::int64_t evict(std::int64_t n_pages, const Hit* keep = nullptr);

  [[nodiscard]] std::int64_t n_pages() const;  // held by the cache, shared or not
  [[nodiscard]] std::size_t snapshot_bytes() const;
  // Writes out everything that is worth keeping (a shutdown); returns when it is durable.
  void flush();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal::cache
