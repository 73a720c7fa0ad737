#include "journal/recovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "journal/segment_log.h"

namespace hadal::journal {

namespace {

// Tokens of one STEP of a copy.
constexpr std::size_t kCopiedTokens = 65536;

// Walks all segments in order into a Replay.
class LogReader {
 public:
  LogReader(FileSystem& fs, const Path& directory, const RecoveryOptions& options, bool tolerate)
      : fs_(fs),
        directory_(directory),
        options_(options),
        tolerate_(tolerate),
        replay_(options.keep, tolerate ? Replay::Damage::tolerate : Replay::Damage::refuse) {}

  Recovery read() {
    find_segments();
    for (std::size_t i = 0; i < names_.size(); ++i) read_segment(i, i + 1 == names_.size());
    replay_.finish();
    result_.streams = std::move(replay_.streams());
    result_.next_local = replay_.next_local();
    return std::move(result_);
  }

 private:
  void find_segments() {
    if (!fs_.exists(directory_)) {
      if (options_.read_only) {
        throw Error(ErrorCode::not_found,
                    fmt::format("there is no journal directory {}", directory_.string()));
      }
      fs_.create_directories(directory_);
    }
    for (const FileSystem::Entry& entry : fs_.list(directory_)) {
      if (const auto number = segment_number(entry.name)) names_.emplace_back(*number, entry.name);
    }
    std::sort(names_.begin(), names_.end());
  }

  [[nodiscard]] Error damage(const std::string& name, const std::string& sentence) const {
    return Error(
        ErrorCode::corrupt_data,
        fmt::format("journal segment {}: {}. Keep a copy of the directory; then either "
                    "repair it (hadal replay --repair, or hadal serve --journal-repair), which "
                    "closes the streams that lost tokens with an error, or start with "
                    "another directory",
                    (directory_ / name).string(), sentence));
  }
  // Throws, or takes a note and goes on.
  void report(const std::string& name, const std::string& sentence) {
    if (!tolerate_) throw damage(name, sentence);
    result_.notes.push_back(fmt::format("segment {}: {}", name, sentence));
  }

  void read_segment(std::size_t i, bool last) {
    const auto& [number, name] = names_[i];
    bytes_ = fs_.read_all(directory_ / name);
    auto [header, reason] = decode_header(bytes_);
    if (header && header->number != number) {
      reason = fmt::format("its header says it is segment {}", header->number);
      header.reset();
    }
    if (!header) {
      // The last one may have been in the making when the power went.
      if (last) return discard(name, reason);
      return report(name, reason);
    }
    if (i > 0 && names_[i - 1].first + 1 != number) {
      report(name, fmt::format("the segment before it, number {}, is missing", number - 1));
    }
    if (!result_.segments.empty()) {
      if (header->log != result_.log) return report(name, "it belongs to another journal");
      if (header->first_lsn != result_.next_lsn) {
        report(name, fmt::format("it begins with record {}, where {} was due: the segment before "
                                 "it lost its end",
                                 header->first_lsn, result_.next_lsn));
      }
    }
    result_.log = header->log;
    result_.next_segment = number + 1;
    read_records(*header, name, last);
  }

  void discard(const std::string& name, const std::string& reason) {
    result_.torn_bytes = bytes_.size();
    result_.torn_reason = fmt::format("segment {}: {}", name, reason);
    if (options_.read_only) return;
    fs_.remove(directory_ / name);
    fs_.sync_directory(directory_);
  }

  void read_records(const SegmentHeader& header, const std::string& name, bool last) {
    SegmentScanner scanner(header, std::span(bytes_).subspan(kSegmentHeaderBytes),
                           kSegmentHeaderBytes, header.first_lsn);
    std::uint64_t committed = kSegmentHeaderBytes;
    Lsn committed_lsn = header.first_lsn;
    for (;;) {
      // A commit counts when all its records are there.
      std::vector<RecordView> commit;
      bool complete = false;
      while (const auto record = scanner.next()) {
        commit.push_back(*record);
        complete = (record->flags & kCommitContinues) == 0;
        if (complete) break;
      }
      if (complete) {
        for (const RecordView& record : commit) apply(record, header.number, name);
        committed = scanner.offset();
        committed_lsn = scanner.next_lsn();
        continue;
      }
      const bool torn = scanner.tail() == SegmentScanner::Tail::torn;
      if (!torn && commit.empty()) {
        // What a crash left of the space that was set aside: given back, or every start would read
        // it again and every crash cost a segment.
        if (committed < bytes_.size()) truncate(name, committed);
        break;
      }
      const std::string sentence =
          torn ? fmt::format("at byte {}, {}", scanner.offset(), scanner.reason())
               : fmt::format("at byte {}, the last commit is not complete", committed);
      // Records that look valid behind a torn one were not synced in order: they do not count.
      if (last) {
        cut(name, committed, sentence);
        break;
      }
      report(name, sentence);
      if (!scanner.skip_damage()) break;
    }
    result_.next_lsn = committed_lsn;
    result_.segments.push_back({header, name, committed});
  }

  void apply(const RecordView& record, std::uint64_t number, const std::string& name) {
    try {
      replay_.apply(record, number);
    } catch (const Error& error) {
      report(name, fmt::format("at byte {}, {}", record.begin, error.what()));
    }
  }

  void cut(const std::string& name, std::uint64_t size, const std::string& sentence) {
    result_.torn_bytes = bytes_.size() - size;
    result_.torn_reason = fmt::format("segment {}: {}", name, sentence);
    truncate(name, size);
  }

  void truncate(const std::string& name, std::uint64_t size) {
    if (options_.read_only || tolerate_) return;
    auto file = fs_.open_append(directory_ / name);
    file->truncate(size);
    file->sync();
    file->close();
  }

  FileSystem& fs_;
  const Path& directory_;
  const RecoveryOptions& options_;
  bool tolerate_;
  Replay replay_;
  Recovery result_;
  std::vector<std::pair<std::uint64_t, std::string>> names_;
  std::vector<std::byte> bytes_;
};

// Writes what was read into one new segment and sets the old ones aside.
void write_anew(FileSystem& fs, const Path& directory, Recovery& read) {
  std::vector<std::string> old;
  for (const FileSystem::Entry& entry : fs.list(directory)) {
    const auto number = segment_number(entry.name);
    if (!number) continue;
    old.push_back(entry.name);
    read.next_segment = std::max(read.next_segment, *number + 1);
  }
  if (read.segments.empty()) random_bytes(read.log);  // not one header could be read
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  for (auto& [local, stream] : read.streams) {
    if (stream.fault.empty() || stream.closed()) continue;
    (void)close_open_choices(stream, CloseReason::error, stream.fault, now);
    read.notes.push_back(fmt::format("stream \"{}\" is closed with an error after {} tokens: {}",
                                     stream.open.name, stream.n_tokens, stream.fault));
  }
  SegmentLog log(fs, directory, read.log, read.next_segment, read.next_lsn, /*preallocate=*/0);
  log.start_segment({});
  for (const auto& [local, stream] : read.streams) {
    (void)log.add(copy_records(stream), kCopy);
  }
  log.write();
  log.finish();
  for (const std::string& name : old) {
    fs.rename(directory / name, directory / (name + ".damaged"));
    read.notes.push_back(fmt::format("segment {} is set aside as {}.damaged", name, name));
  }
}

}  // namespace

std::vector<Stream*> Recovery::unfinished() {
  std::vector<Stream*> open;
  for (auto& [local, stream] : streams) {
    if (!stream.closed()) open.push_back(&stream);
  }
  return open;
}

Recovery recover(FileSystem& fs, const Path& directory, const RecoveryOptions& options) {
  std::shared_ptr<void> lock;
  if (!options.read_only) {
    fs.create_directories(directory);
    lock = fs.lock(directory / "LOCK");
  }
  std::vector<std::string> notes;
  if (options.repair && !options.read_only) {
    const RecoveryOptions look{.read_only = true};
    try {
      (void)LogReader(fs, directory, look, false).read();
    } catch (const Error& error) {
      if (error.code != ErrorCode::corrupt_data) throw;
      const RecoveryOptions everything{.read_only = true, .keep = Replay::Keep::everything};
      Recovery damaged = LogReader(fs, directory, everything, true).read();
      write_anew(fs, directory, damaged);
      notes = std::move(damaged.notes);
    }
  }
  Recovery result = LogReader(fs, directory, options, false).read();
  if (result.segments.empty()) random_bytes(result.log);
  result.lock = std::move(lock);
  result.notes.insert(result.notes.begin(), notes.begin(), notes.end());
  return result;
}

Stream read_stream(FileSystem& fs, const Path& directory, LocalId local, Position begin,
                   Position end) {
  Replay replay(Replay::Keep::everything);
  replay.only(local);
  for (std::uint64_t number = begin.segment; number <= end.segment; ++number) {
    const Path path = directory / segment_name(number);
    const auto file = fs.open_read(path);
    std::array<std::byte, kSegmentHeaderBytes> head{};
    const std::size_t n_head = file->read(0, head);
    const auto [header, reason] = decode_header(std::span(head).first(n_head));
    if (!header) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("journal segment {}: {}", path.string(), reason));
    }
    const std::uint64_t from = number == begin.segment ? begin.offset : kSegmentHeaderBytes;
    const std::uint64_t to = number == end.segment ? end.offset : file->size();
    std::vector<std::byte> bytes(to > from ? to - from : 0);
    bytes.resize(file->read(from, bytes));
    // Which record comes first in the middle of a segment, only the record itself can say.
    Lsn first = header->first_lsn;
    if (from > kSegmentHeaderBytes && bytes.size() >= kRecordHeaderBytes) {
      std::memcpy(&first, bytes.data() + 16, sizeof first);
    }
    SegmentScanner scanner(*header, bytes, from, first);
    while (const auto record = scanner.next()) replay.apply(*record, number);
    if (number == end.segment ? scanner.offset() != end.offset
                              : scanner.tail() != SegmentScanner::Tail::clean) {
      throw Error(ErrorCode::corrupt_data,
                  fmt::format("journal segment {}: at byte {}, {}", path.string(), scanner.offset(),
                              scanner.reason()));
    }
  }
  const auto it = replay.streams().find(local);
  if (it == replay.streams().end()) {
    throw Error(ErrorCode::corrupt_data,
                fmt::format("stream number {} is not where the journal had it", local));
  }
  return std::move(it->second);
}

std::vector<PendingRecord> copy_records(const Stream& stream) {
  std::vector<PendingRecord> records{{RecordType::open, encode(stream.open)}};
  StepRecord step;
  for (std::size_t i = 0; i < stream.events.size(); ++i) {
    step.tokens.push_back(stream.events[i]);
    if (step.tokens.size() < kCopiedTokens && i + 1 < stream.events.size()) continue;
    records.push_back({RecordType::step, encode(step)});
    step.tokens.clear();
  }
  if (stream.snap) records.push_back({RecordType::snap, encode(*stream.snap)});
  if (stream.cancelled) {
    records.push_back({RecordType::cancel,
                       encode(CancelRecord{.local = stream.local(), .reason = *stream.cancelled})});
  }
  for (const ChoiceState& choice : stream.choices) {
    if (choice.close) records.push_back({RecordType::close, encode(*choice.close)});
  }
  return records;
}

}  // namespace hadal::journal
