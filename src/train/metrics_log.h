// RUN/metrics.jsonl, written while a run trains and continued when it resumes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "train/step_record.h"

namespace hadal::train {

inline constexpr std::string_view kMetricsName = "metrics.jsonl";

struct MetricsLogOptions {
  std::int64_t sync_every = 64;  // records between two syncs of their own; 0: only sync()
};

// Appends records, each with one write: a process that is killed loses none, a machine that loses
// power those since the last sync. One thread at a time. `fs` must outlive this.
class MetricsLog {
 public:
  // Of a run that begins. Throws Error invalid_argument when the file has records already.
  [[nodiscard]] static MetricsLog create(FileSystem& fs, Path file, MetricsLogOptions options = {});

  // Of a run that goes on behind the checkpoint of `step` (0: from its start). Everything that was
  // written after the newest record of that step is dropped, and so are a torn last line and
  // damaged ones; the file changes all at once or not at all. Without a file, as create().
  [[nodiscard]] static MetricsLog resume(FileSystem& fs, Path file, std::int64_t step,
                                         MetricsLogOptions options = {});

  // Throws Error io. What a failed write left behind is taken away by the next one.
  void write(const RunRecord& record);
  // All records so far on stable storage; call it before a checkpoint counts as saved.
  void sync();

  struct Dropped {
    std::int64_t n_later = 0;            // records of steps that will be done again
    std::vector<std::string> damaged{};  // a sentence a line
  };
  [[nodiscard]] const Dropped& dropped() const { return dropped_; }  // by resume()
  [[nodiscard]] const Path& path() const { return path_; }

 private:
  MetricsLog(FileSystem& fs, Path file, MetricsLogOptions options);

  Path path_;
  MetricsLogOptions options_;
  std::unique_ptr<WritableFile> file_;
  std::uint64_t nbytes_ = 0;
  std::int64_t n_unsynced_ = 0;
  bool failed_ = false;  // the last write: there may be a part of a line behind nbytes_
  Dropped dropped_;
};

}  // namespace hadal::train
