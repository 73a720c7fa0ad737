// Appending to the log: group commit on a thread of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "journal/recovery.h"

namespace hadal::journal {

// When a token may be shown, and so what a crash can take back.
//   none      after write(): a crash of the process loses nothing, a loss of power the unsynced end
//   interval  the same, and a sync at least every `interval` while there is something to sync
//   step      after the sync: nothing that was shown is ever lost
struct SyncPolicy {
  enum class Kind : std::uint8_t { none, interval, step } kind = Kind::interval;
  std::chrono::milliseconds interval{50};

  // "none", "interval" (50 ms), "interval:20ms", "interval:2s", "step". Nothing for anything else.
  [[nodiscard]] static std::optional<SyncPolicy> parse(std::string_view text);
  [[nodiscard]] std::string to_string() const;
};

struct WriterOptions {
  SyncPolicy sync;
  std::uint64_t segment_bytes = std::uint64_t{64} << 20;
  std::chrono::seconds segment_age{600};
  std::chrono::seconds retention{3600};  // of a closed stream, after its last CLOSE
  std::uint64_t max_open_age = 8;  // segments; an open stream that began further back is copied
  // Called on the log's thread with the seconds that a write() or a sync took.
  std::function<void(double)> on_append{}, on_sync{};
  std::function<std::int64_t()> unix_seconds{};  // the clock; empty: the system's
};

// What is known of a stream without reading it.
struct StreamInfo {
  std::string name;
  LocalId local = 0;
  std::string api, response_id, principal;
  std::int64_t created = 0;
  bool resumable = false;
  Sha256Digest request_sha256{}, fingerprint{};
  struct Choice {
    std::uint32_t n_tokens = 0;
    std::optional<CloseReason> close;
    std::string detail;
  };
  // What is logged; tokens handed in may be more. Of a failed log: what was handed in.
  std::vector<Choice> choices;
  std::uint64_t n_tokens = 0;  // over all choices
  std::int64_t closed_at = 0;  // unix seconds; 0 while a choice is open
  [[nodiscard]] bool closed() const { return closed_at != 0; }
};

struct WriterStats {
  std::uint64_t pending_tokens = 0;  // handed in, not yet published: the lag
  std::uint64_t pending_commits = 0;
  std::uint64_t logged_tokens = 0, unlogged_tokens = 0;  // the latter since the log failed
  std::uint64_t appends = 0, syncs = 0, bytes = 0;
  double append_seconds = 0, sync_seconds = 0;
  std::uint64_t segments = 0, deleted_segments = 0, copied_streams = 0;
  std::uint64_t open_streams = 0, closed_streams = 0;
};

// The end of a choice, as the engine tells it.
struct ChoiceEnd {
  LocalId local = 0;
  std::uint16_t choice = 0;
  CloseReason reason = CloseReason::stop;
  std::string detail = {};
};

// Owns the log's thread. A disk that fails makes the writer fail: from then on nothing is logged,
// everything is still published, and healthy() says so; producers never wait for the disk. Any
// thread may call; commits are in the order in which they were handed in.
class Writer {
 public:
  // Continues what recover() found, in a new segment. Streams that cannot go on (a fault, a CANCEL)
  // are closed, and forgotten ones dropped. Keeps `recovered.lock`. `fs` must outlive this. Throws
  // io when the segment cannot be begun.
  Writer(FileSystem& fs, Path directory, WriterOptions options, const Recovery& recovered);
  ~Writer();  // logs, syncs and publishes what was handed in

  // Begins a stream; `local` in the record is ignored. Nothing when the name is taken by a stream
  // that is open or kept: find() has it. Throws invalid_argument for a name or a number of choices
  // that the format cannot hold. Compresses on the calling thread. `written`, which may be empty,
  // is called when the policy lets things that follow be shown (at once on a failed log).
  [[nodiscard]] std::optional<LocalId> open(OpenRecord record,
                                            std::function<void()> written = nullptr);

  // One engine step: tokens, then ends, all or nothing of it. `publish` is called on the log's
  // thread when they may be seen. Tokens whose `local` is 0 belong to no stream of the log.
  void commit(std::vector<TokenEntry> tokens, std::vector<ChoiceEnd> ends,
              std::function<void()> publish);

  void cancel(LocalId local, const std::string& reason);  // the client's wish; ends follow
  void snap(SnapRecord record);
  // Closes all open choices, for streams that will not be resumed. Not for one that is running.
  void abandon(LocalId local, CloseReason reason, const std::string& detail);

  // Waits until everything handed in before is on stable storage, whatever the policy, and
  // published. False when the log has failed.
  [[nodiscard]] bool flush();
  // Waits for a pass of what otherwise happens by itself: rotation by age, copies of old open
  // streams, forgetting and deleting.
  void maintain();

  [[nodiscard]] bool healthy() const;
  [[nodiscard]] std::string failure() const;  // a sentence; empty while healthy
  [[nodiscard]] WriterStats stats() const;

  [[nodiscard]] std::optional<StreamInfo> find(const std::string& name) const;
  [[nodiscard]] std::vector<StreamInfo> streams() const;  // by number
  [[nodiscard]] std::optional<LocalId> local_of(const std::string& name) const;
  // Request, tokens in log order and ends of a stream, from disk: all that was published when this
  // was called, and possibly more. Nothing when the name is unknown
  // or, since the log failed, never reached the disk. Throws io and corrupt_data.
  [[nodiscard]] std::optional<Stream> read(const std::string& name) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal::journal
