// The thread behind a Writer: takes what was handed in, writes it as one group, publishes it; and
// the index of streams that other threads ask. Private to the journal.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "journal/segment_log.h"
#include "journal/writer.h"

namespace hadal::journal {

struct OpenTask {
  LocalId local = 0;
  bool keep_logprobs = false;
  std::uint32_t n_choices = 1;
  std::string name;
  std::vector<std::byte> payload;
};
struct StepTask {
  std::vector<TokenEntry> tokens;
  std::vector<ChoiceEnd> ends;
};
struct AbandonTask {
  LocalId local = 0;
  CloseReason reason = CloseReason::cancelled;
  std::string detail;
};
struct BarrierTask {
  bool sync = false;
};
struct MaintainTask {};

struct Work {
  std::variant<OpenTask, StepTask, CancelRecord, SnapRecord, AbandonTask, BarrierTask, MaintainTask>
      task;
  std::function<void()> done{};
  std::uint64_t n_tokens = 0;
};

class LogThread {
 public:
  LogThread(FileSystem& fs, Path directory, WriterOptions options, const Recovery& recovered);
  ~LogThread();
  LogThread(const LogThread&) = delete;
  LogThread& operator=(const LogThread&) = delete;

  // Takes the name, gives the stream a number and hands its OPEN in; nothing when it is taken.
  [[nodiscard]] std::optional<LocalId> open(const OpenRecord& record,
                                            std::vector<std::byte> payload,
                                            std::function<void()> written);
  void submit(Work work);
  void submit_and_wait(decltype(Work::task) task);

  [[nodiscard]] std::string failure() const;
  [[nodiscard]] WriterStats stats() const;
  [[nodiscard]] std::optional<StreamInfo> find(const std::string& name) const;
  [[nodiscard]] std::vector<StreamInfo> streams() const;
  [[nodiscard]] std::optional<LocalId> local_of(const std::string& name) const;
  [[nodiscard]] std::optional<Stream> read(const std::string& name);

 private:
  using Clock = std::chrono::steady_clock;

  // An open stream, as the log's thread sees it.
  struct Live {
    std::string name;
    bool keep_logprobs = false;
    struct Choice {
      std::vector<TokenId> tokens;
      std::optional<CloseRecord> close = {};
    };
    std::vector<Choice> choices;
    std::uint64_t n_tokens = 0;
    Position begin, end;
  };
  // What the index knows of any stream. `end` is the zero position until something is on disk.
  struct Entry {
    StreamInfo info;
    Position begin, end;
  };

  void adopt(const Recovery& recovered);
  void run();  // nothing it calls may throw: that would be the end of the process
  void process(std::deque<Work>& batch);
  void publish(const std::deque<Work>& batch);
  void log_batch(std::deque<Work>& batch);
  // Brings `live_` up to date with one piece of work and returns the records that say so.
  [[nodiscard]] std::vector<PendingRecord> records_of(Work& work);
  void add_tokens(StepTask& step, std::vector<PendingRecord>& records);
  void end_choice(const ChoiceEnd& end, std::vector<PendingRecord>& records);
  void fail(const std::string& sentence);
  void sync();
  void update_index(bool on_disk);
  [[nodiscard]] TableRecord table() const;
  void rotate();

  void maintenance();
  void forget_expired();
  void copy_old_streams();
  void delete_segments();

  [[nodiscard]] std::int64_t now_unix() const;

  FileSystem& fs_;
  Path directory_;
  WriterOptions options_;
  std::shared_ptr<void> directory_lock_;

  // The log's thread only.
  SegmentLog log_;
  std::map<LocalId, Live> live_;
  std::set<LocalId> touched_;  // since the index was updated
  std::vector<std::uint64_t> segments_;
  std::size_t n_taken_ = 0;  // of the batch: live_ knows what they did
  bool dirty_ = false;       // written and not synced
  bool failed_ = false;
  Clock::time_point last_sync_, next_maintenance_;
  std::int64_t segment_started_ = 0;  // unix seconds

  mutable std::shared_mutex files_mutex_;  // shared while reading segments, whole to delete them

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;
  bool stopping_ = false;
  std::string failure_;
  WriterStats stats_;
  std::map<LocalId, Entry> index_;
  std::unordered_map<std::string, LocalId> names_;
  LocalId next_local_ = 1;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace hadal::journal
