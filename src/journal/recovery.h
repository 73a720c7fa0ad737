// What a log says after whatever happened to the process that wrote it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "journal/stream.h"

namespace hadal::journal {

struct RecoveryOptions {
  // Changes nothing on disk and takes no lock: a look at a log that somebody may be writing.
  bool read_only = false;
  // Damage before the last segment's tail does not stop: what can be read is written anew, streams
  // that lost something are closed with an error, and the old segments are set aside as *.damaged.
  bool repair = false;
  Replay::Keep keep = Replay::Keep::unfinished;
};

struct Recovery {
  struct Segment {
    SegmentHeader header;
    std::string name;
    std::uint64_t size = 0;  // up to the end of its last record
  };
  Uuid log{};
  std::uint64_t next_segment = 1;
  Lsn next_lsn = 1;
  LocalId next_local = 1;
  std::vector<Segment> segments;  // in order
  std::map<LocalId, Stream> streams;
  // An unfinished last write that was cut off (or would be: read_only), and what was wrong with it.
  std::uint64_t torn_bytes = 0;
  std::string torn_reason;
  std::vector<std::string> notes;  // of a repair: sentences for people
  std::shared_ptr<void> lock;      // of the directory

  // Streams with an open choice, in the order of their numbers. Those with a fault or a `cancelled`
  // reason cannot go on; a Writer closes them when it is made.
  [[nodiscard]] std::vector<Stream*> unfinished();
};

// Reads the whole log in `directory`, which is created when it does not exist. The end of the last
// segment may be torn: it is cut back to the last whole commit. Anything else that is not right
// throws corrupt_data naming the segment, the place and the ways out.  Source: serving.md §5.6.
[[nodiscard]] Recovery recover(FileSystem& fs, const Path& directory,
                               const RecoveryOptions& options = {});

// One stream of a log that stands still in [begin, end), or of one that is being written and has
// passed `end`. Throws corrupt_data when it is not all there.
[[nodiscard]] Stream read_stream(FileSystem& fs, const Path& directory, LocalId local,
                                 Position begin, Position end);

// The records that say again what is known of `stream`.
struct PendingRecord {
  RecordType type{};
  std::vector<std::byte> payload;
};
[[nodiscard]] std::vector<PendingRecord> copy_records(const Stream& stream);

}  // namespace hadal::journal
