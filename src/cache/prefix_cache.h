// Pasts that later prompts can start from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/paged_kv.h"
#include "cache/snapshot.h"
#include "core/token.h"

namespace hadal::cache {

class DiskStore;

struct PrefixCacheOptions {
  std::size_t snapshot_bytes = std::size_t{256} << 20;  // budget of all snapshots in memory
  double snapshot_seconds = 600;  // unpinned snapshots unused for so long may go first
  double pinned_share = 0.25;     // of all pages, and of snapshot_bytes: for shared preambles
  // Whether a hit may ask for a replay (Hit::replay_from): where pages reach far beyond the last
  // snapshot, or there is none.
  bool replay = false;
  // Compares checksums of rows at every hit with those at their insertion. For tests and for
  // hunting errors: it reads all that is hit.
  bool verify_rows = false;
  std::function<double()> now = {};  // seconds; empty: the machine's steady clock
};

// Longest shared prefix at page boundaries. Two kinds of object: pages (immutable, shared by
// reference) in a tree keyed by the chain of their tokens, and snapshots at some nodes of it. A
// prefix is usable where a node has a snapshot and every page before it is still there. Used by
// one thread.  Source: DeepSeek-V4 §3.5; serving.md §5.3.
class PrefixCache {
 public:
  // `disk` may be null: then what is evicted is forgotten. Both must outlive this. Throws
  // invalid_argument when the disk's pages are not laid out as this cache's.
  PrefixCache(PagedKv& kv, const PrefixCacheOptions& options, DiskStore* disk = nullptr);
  ~PrefixCache();

  struct Hit {
    std::int64_t position = 0;   // 0: nothing is shared
    std::vector<PageRef> pages;  // of [0, position)
    // Null: tokens [replay_from, position) have to be run first, on a fresh state. Their entries
    // are known and stay (PagedKv::adopt freezes them), and the rows of every layer are exact when
    // `position` is reached. Logits of the replay itself are not. Only with the option `replay`.
    std::shared_ptr<const Snapshot> snapshot;
    std::int64_t replay_from = 0;  // == position with a snapshot
    // Tokens, from the first one on, that cached pages share with the prompt; the last usable
    // snapshot may lie before: one at this position would have served this prompt.
    std::int64_t shared_tokens = 0;
    bool from_disk = false;
  };
  // The longest usable prefix of `tokens` that leaves at least one token to run. Reads from disk
  // what memory lacks; files that fail a check are set aside and not used.
  [[nodiscard]] Hit find(const std::string& domain, std::span<const TokenId> tokens);

  // A request came whose prompt begins with `preamble`, as others may: a system prompt with its
  // tools. From the second one on, the full pages of the preamble and the snapshot at the end of
  // the last one are pinned as soon as they are known: evict() spares them and they do not grow
  // old. Pins take at most pinned_share of the memory, those that were asked for last.
  //
  // Twice, because a preamble that nobody repeats is worth no more than any other text; and by its
  // content, not on request, so that a client can fill the share with nothing but what it does
  // send again, and costs others no more than their place in it.
  void note_preamble(const std::string& domain, std::span<const TokenId> preamble);

  // Remembers the full pages of `slot`, whose first tokens are `tokens`, and freezes them: those
  // tokens are settled. Pages that are already known are shared with the slot instead
  // (PagedKv::replace_page).
  void insert(const std::string& domain, std::span<const TokenId> tokens, std::int64_t slot);
  // As insert, for tokens[0, position), and keeps the slot's state there. `position` is a multiple
  // of the page size and is where the slot stands now, or up to rollback_tokens before.
  void insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                       std::int64_t position, std::int64_t slot);
  // The same with a state that was saved when the slot stood at its position.
  void insert_snapshot(const std::string& domain, std::span<const TokenId> tokens,
                       std::int64_t slot, std::shared_ptr<const Snapshot> snapshot);

  enum class Pins : std::uint8_t { keep, release };
  // Gives back at least `n_pages` pages that nobody but the cache uses, the longest unused leaves
  // first; those of a hit are used as long as the hit exists. Pinned prefixes stay, or, with
  // `release`, lose their pins one by one, the oldest first, when all else is gone. Returns how
  // many; fewer when there are no more.
  std::int64_t evict(std::int64_t n_pages, Pins pins = Pins::keep);

  [[nodiscard]] std::int64_t n_pages() const;  // held by the cache, shared or not
  [[nodiscard]] std::size_t snapshot_bytes() const;
  struct Statistics {
    std::int64_t pages = 0, snapshots = 0;
    std::size_t snapshot_bytes = 0;
    std::int64_t pins = 0, pinned_pages = 0;  // of those above
    std::size_t pinned_bytes = 0;             // of pages and snapshots
    std::uint64_t evicted_pages = 0, evicted_snapshots = 0;
    std::uint64_t stale_rows = 0;  // found by verify_rows: an error of hadal's own
  };
  [[nodiscard]] Statistics statistics() const;
  // Writes out everything that is worth keeping (a shutdown); returns when it is durable.
  void flush();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal::cache
