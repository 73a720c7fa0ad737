// What the records of one stream add up to.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "journal/record.h"
#include "journal/segment.h"

namespace hadal::journal {

struct ChoiceState {
  std::vector<TokenId> tokens = {};  // emptied when nobody needs them any more
  std::uint32_t n_tokens = 0;
  std::optional<CloseRecord> close = {};
};

struct Stream {
  OpenRecord open;
  Position begin, end;             // every record of it lies in [begin, end)
  std::vector<TokenEntry> events;  // in log order over all choices: event n is events[n - 1]
  std::vector<ChoiceState> choices;
  std::uint64_t n_tokens = 0;            // over all choices, even when events were dropped
  std::optional<std::string> cancelled;  // the reason of a CANCEL
  std::optional<SnapRecord> snap;        // the latest
  // A sentence when tokens are missing: what follows the gap was dropped, and the open choices can
  // only be closed with an error.
  std::string fault;

  [[nodiscard]] LocalId local() const { return open.local; }
  [[nodiscard]] bool closed() const;             // all its choices
  [[nodiscard]] std::int64_t closed_at() const;  // unix seconds of the last CLOSE; 0: none
};

// Closes what is open in `stream` with the tokens it has, and returns the new records.
std::vector<CloseRecord> close_open_choices(Stream& stream, CloseReason reason,
                                            const std::string& detail, std::int64_t unix_seconds);

// Applies records in order.
class Replay {
 public:
  enum class Keep : std::uint8_t {
    everything,
    unfinished  // drops prompt, request and tokens of a stream when its last choice closes
  };
  enum class Damage : std::uint8_t {
    refuse,   // contradictions throw corrupt_data
    tolerate  // ... become the stream's fault instead, and records of unknown streams are ignored
  };
  explicit Replay(Keep keep, Damage damage = Damage::refuse) : keep_(keep), damage_(damage) {}
  // Only this stream's records count; for reading one out of a log that holds many.
  void only(LocalId local) { only_ = local; }

  // `segment` is the number of the segment that `record` lies in; the first call's segment is
  // where the log begins. Throws corrupt_data: malformed payloads, a token that contradicts an
  // earlier one, a CLOSE that its tokens do not match, streams whose beginning is missing.
  void apply(const RecordView& record, std::uint64_t segment);
  // After the last record: a stream that was open before the log begins and never copied is gone.
  void finish();

  [[nodiscard]] std::map<LocalId, Stream>& streams() { return streams_; }
  [[nodiscard]] LocalId next_local() const { return next_local_; }

 private:
  void apply_open(OpenRecord record, Position begin, Position end);
  void apply_step(const StepRecord& record, Position end);
  void apply_close(CloseRecord record, Position end);
  void apply_table(const TableRecord& table, bool first);
  // The stream with that number; null when it is to be ignored. Throws when it should be known.
  [[nodiscard]] Stream* find(LocalId local, RecordType type);
  void add_token(Stream& stream, const TokenEntry& entry);
  void contradiction(Stream* stream, const std::string& sentence) const;
  void gap(Stream& stream, const std::string& sentence);

  Keep keep_;
  Damage damage_;
  LocalId only_ = 0;
  std::optional<std::uint64_t> first_segment_;
  std::map<LocalId, Stream> streams_;
  struct Orphan {
    std::string name;
    bool closing = false;  // a CLOSE was seen: it may have ended without a copy
  };
  std::map<LocalId, Orphan> orphans_;  // open when the first segment began
  std::map<std::string, LocalId> names_;
  LocalId next_local_ = 1;
};

}  // namespace hadal::journal
