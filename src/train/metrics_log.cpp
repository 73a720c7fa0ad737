#include "train/metrics_log.h"

#include <fmt/format.h>

#include <utility>

#include "core/error.h"

namespace hadal::train {

namespace {

struct Line {
  std::string_view text;  // with its line feed
  bool is_step = false;
  std::int64_t step = 0;
};

std::string read_file(FileSystem& fs, const Path& path) {
  const std::vector<std::byte> bytes = fs.read_all(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The lines that can be read. A record of an unknown kind belongs to the line before it.
std::vector<Line> readable_lines(std::string_view text, const Path& path,
                                 std::vector<std::string>& damaged) {
  std::vector<Line> lines;
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    ++number;
    const std::size_t feed = text.find('\n', begin);
    const std::string where = fmt::format("{} line {}", path.string(), number);
    if (feed == std::string_view::npos) {
      damaged.push_back(where + ": the last line is cut off");
      break;
    }
    const std::string_view line = text.substr(begin, feed + 1 - begin);
    begin = feed + 1;
    if (line.size() == 1) continue;
    try {
      const std::optional<RunRecord> record = parse_record(line.substr(0, line.size() - 1), where);
      const std::int64_t before = lines.empty() ? 0 : lines.back().step;
      lines.push_back({line, record && std::holds_alternative<StepRecord>(*record),
                       record ? step_of(*record) : before});
    } catch (const Error& error) {
      damaged.emplace_back(error.what());
    }
  }
  return lines;
}

// How many of the lines the checkpoint of `step` has behind it: those up to the newest record of
// that step, and what was measured between it and the next one. After a rollback there may be
// several of one step; the newest is the one whose checkpoint lies on the disk.
std::size_t lines_until(const std::vector<Line>& lines, std::int64_t step) {
  std::size_t n_exact = 0, n_before = 0;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!lines[i].is_step) continue;
    if (lines[i].step == step) n_exact = i + 1;
    if (lines[i].step < step) n_before = i + 1;
  }
  std::size_t n = n_exact > 0 ? n_exact : n_before;
  // What says it is of an older step is a rollback, which is still to come.
  const std::int64_t at = n > 0 ? lines[n - 1].step : 0;
  while (n < lines.size() && !lines[n].is_step && at <= lines[n].step && lines[n].step <= step) ++n;
  return n;
}

}  // namespace

MetricsLog::MetricsLog(FileSystem& fs, Path file, MetricsLogOptions options)
    : path_(std::move(file)), options_(options), file_(fs.open_append(path_)) {
  if (path_.has_parent_path()) fs.sync_directory(path_.parent_path());
  nbytes_ = fs.file_size(path_);
}

MetricsLog MetricsLog::create(FileSystem& fs, Path file, MetricsLogOptions options) {
  if (fs.exists(file) && fs.file_size(file) > 0) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{} has the records of a run already: resume that run, or take another "
                            "directory",
                            file.string()));
  }
  return {fs, std::move(file), options};
}

MetricsLog MetricsLog::resume(FileSystem& fs, Path file, std::int64_t step,
                              MetricsLogOptions options) {
  if (!fs.exists(file)) return {fs, std::move(file), options};
  const std::string text = read_file(fs, file);
  Dropped dropped;
  const std::vector<Line> lines = readable_lines(text, file, dropped.damaged);
  const std::size_t n_kept = lines_until(lines, step);
  dropped.n_later = static_cast<std::int64_t>(lines.size() - n_kept);
  std::string kept;
  kept.reserve(text.size());
  for (std::size_t i = 0; i < n_kept; ++i) kept += lines[i].text;
  if (kept.size() != text.size()) {
    Path temporary = file;
    temporary += ".new";
    const auto out = fs.create(temporary);
    out->append(kept);
    out->sync();
    out->close();
    fs.rename(temporary, file);
  }
  MetricsLog log(fs, std::move(file), options);
  log.dropped_ = std::move(dropped);
  return log;
}

void MetricsLog::write(const RunRecord& record) {
  const std::string line = to_json_line(record) + "\n";
  if (failed_) file_->truncate(nbytes_);
  failed_ = true;
  file_->append(line);
  failed_ = false;
  nbytes_ += line.size();
  ++n_unsynced_;
  if (options_.sync_every > 0 && n_unsynced_ >= options_.sync_every) sync();
}

void MetricsLog::sync() {
  if (n_unsynced_ == 0) return;
  file_->sync_data();
  n_unsynced_ = 0;
}

}  // namespace hadal::train
