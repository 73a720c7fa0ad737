// Pages and snapshots on disk: what memory forgets, and what a restart would.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "cache/chain_key.h"
#include "cache/disk_index.h"
#include "cache/kv_layout.h"
#include "cache/page_pool.h"
#include "cache/snapshot.h"
#include "cache/write_queue.h"
#include "core/file.h"

namespace hadal::cache {

// What is stored of window rows, beside the compressed entries.  Source: DeepSeek-V4 §3.5.2.
//   full      the rows behind every page: a prefix continues from its last page boundary with
//             nothing to compute again; about nine times the bytes
//   periodic  where the engine takes snapshots: at most an interval is computed again
//   zero      none: the last sliding_window tokens of every layer are computed again, exactly
enum class WindowStrategy : std::uint8_t { full, periodic, zero };
[[nodiscard]] const char* to_string(WindowStrategy strategy);
// From "full", "periodic" or "zero"; throws invalid_argument.
[[nodiscard]] WindowStrategy parse_window_strategy(std::string_view name);
// How many tokens apart an engine takes snapshots, 0 for never, when `periodic` is its choice.
[[nodiscard]] std::int64_t snapshot_interval(WindowStrategy strategy, std::int64_t page_tokens,
                                             std::int64_t periodic);

struct DiskStoreOptions {
  std::string fingerprint = {};  // names the weights and all else that decides what they compute
  std::uint64_t budget_bytes = std::uint64_t{16} << 30;
  WindowStrategy strategy = WindowStrategy::periodic;
  std::uint64_t min_free_bytes = std::uint64_t{1} << 30;  // of the disk; left to others
  std::int64_t pages_per_file = 64;
  std::size_t queue_bytes = std::size_t{256} << 20;  // waiting to be written; more is dropped
};

// Files of pages and of snapshots, named by their chain keys, in a directory that one process uses
// at a time. Every file is whole or not used: one that fails a check is set aside, one of another
// model or layout is removed. Writing happens on a thread of its own and never holds up the caller;
// what does not fit into the queue or onto the disk is dropped and counted, since all of it can be
// computed again.  Used by one thread.
// Source: DeepSeek-V4 §3.5.2; serving.md §5.4; docs/formats/kv_cache.md.
class DiskStore {
 public:
  // Creates the directory, or lists the headers of the files in it. `layout` is that of the PagedKv
  // whose pages these are. Throws io when the directory cannot be used or somebody uses it.
  DiskStore(FileSystem& fs, Path directory, const KvLayout& layout,
            const DiskStoreOptions& options);
  ~DiskStore();  // writes what waits
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  [[nodiscard]] const ChainHasher& hasher() const { return *hasher_; }
  [[nodiscard]] const std::string& layout() const { return layout_; }
  [[nodiscard]] WindowStrategy strategy() const { return options_.strategy; }
  [[nodiscard]] std::int64_t pages_per_file() const { return options_.pages_per_file; }

  // Whether files say so; reading may still find them damaged. Includes what waits to be written.
  [[nodiscard]] bool has_page(const ChainKey& key) const;
  [[nodiscard]] bool has_snapshot(const ChainKey& key) const;

  // Fills pages from disk, the first one first, until one is not there, is damaged or has other
  // tokens; returns how many. `tokens` are those of all pages.
  [[nodiscard]] std::int64_t read_pages(std::span<const ChainKey> keys,
                                        std::span<const TokenId> tokens,
                                        std::span<const PageRef> into);
  // The snapshot behind the page `key`, whose tokens are these; null as above.
  [[nodiscard]] std::shared_ptr<const Snapshot> read_snapshot(const ChainKey& key,
                                                              std::int64_t position,
                                                              std::span<const TokenId> page_tokens);

  // Consecutive pages of a chain, the first at `position`, at most pages_per_file. False when they
  // were dropped. Pages must not change any more.
  using WhenFull = WriteQueue::WhenFull;
  bool write_pages(const ChainKey& parent, std::int64_t position, std::span<const ChainKey> keys,
                   std::span<const TokenId> tokens, std::span<const PageRef> pages,
                   WhenFull when_full = WhenFull::refuse);
  bool write_snapshot(const ChainKey& key, std::span<const TokenId> page_tokens,
                      std::shared_ptr<const Snapshot> snapshot,
                      WhenFull when_full = WhenFull::refuse);
  // A prefix was used: its files go last.
  void touch(std::span<const ChainKey> keys);

  // Forgets what waits to be written, and so lets go of its pages.
  void drop_queued();
  // Returns when all that was accepted lies on stable storage, or was given up.
  void flush();

  struct Statistics {
    std::uint64_t bytes = 0, files = 0;
    std::uint64_t page_hits = 0, snapshot_hits = 0;  // read and whole
    std::uint64_t misses = 0;                        // lookups for which there was nothing
    std::uint64_t rejected_files = 0;                // damaged: set aside
    std::uint64_t foreign_files = 0;                 // of another model or layout: removed
    std::uint64_t evicted_files = 0;
    std::uint64_t dropped_writes = 0;  // queue full, or no room on the disk
    std::uint64_t failed_writes = 0;   // the file system said no
    std::uint64_t bytes_read = 0, bytes_written = 0;
  };
  [[nodiscard]] Statistics statistics() const;  // any thread
  void count_miss();

 private:
  struct Name {
    KvFileKind kind;
    ChainKey key;
    friend auto operator<=>(const Name&, const Name&) = default;
  };
  [[nodiscard]] Path path_of(KvFileKind kind, const ChainKey& name) const;
  void open_directory();
  [[nodiscard]] ChainHasher::Secret load_secret();
  void list_files();
  void list_folder(KvFileKind kind, const Path& folder);
  void load_hits();
  void save_hits();
  void set_aside(const Path& path);
  [[nodiscard]] std::uint64_t now_ms();
  bool enqueue(KvFileHeader header, std::vector<TokenId> tokens, std::vector<PageRef> pages,
               std::shared_ptr<const Snapshot> snapshot, WhenFull when_full);
  void write(KvFileHeader header, std::span<const TokenId> tokens,
             std::span<const std::span<const std::byte>> items) noexcept;
  [[nodiscard]] bool make_room(std::uint64_t nbytes);  // mutex_ not held

  FileSystem& fs_;
  const Path directory_;
  const DiskStoreOptions options_;
  const std::string layout_;
  const std::int64_t page_tokens_;
  const std::size_t page_bytes_;
  Sha256Digest model_{};
  std::shared_ptr<void> lock_;
  std::unique_ptr<ChainHasher> hasher_;

  mutable std::mutex mutex_;  // of all below: the writer adds and removes files
  DiskIndex index_;
  std::set<Name> queued_;
  std::set<ChainKey> queued_pages_;
  Statistics statistics_;
  std::uint64_t last_ms_ = 0;

  WriteQueue queue_;  // last: its thread uses the others
};

}  // namespace hadal::cache
