#include "train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "core/digest.h"
#include "core/error.h"
#include "core/units.h"
#include "io/safetensors.h"
#include "train/checkpoint_layout.h"

namespace hadal::train {

namespace {

constexpr std::string_view kPrefix = "step-";

// Tensors [begin, end) of a state: one file.
struct Shard {
  std::size_t begin, end;
};

std::vector<Shard> shards_of(std::span<const NamedTensor> tensors, std::size_t shard_bytes) {
  std::vector<Shard> shards;
  std::size_t room = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::size_t size = tensors[i].tensor.nbytes();
    if (shards.empty() || size > room) {
      shards.push_back({i, i});
      room = std::max(shard_bytes, size);
    }
    room -= size;
    shards.back().end = i + 1;
  }
  return shards;
}

FileDigest write_shard(FileSystem& fs, const Path& directory, const std::string& name,
                       std::span<const NamedTensor> tensors) {
  std::vector<io::TensorDecl> decls;
  for (const NamedTensor& t : tensors)
    decls.push_back({t.name, t.tensor.dtype(), t.tensor.shape(), {}});
  Sha256 digest;
  io::SafetensorsWriter writer(fs, directory / name, std::move(decls), {{"format", "pt"}}, &digest);
  for (const NamedTensor& t : tensors) writer.write(t.name, t.on_host());
  writer.finish();
  return {
      .file = name, .nbytes = fs.file_size(directory / name), .sha256 = to_hex(digest.finish())};
}

FileDigest write_text(FileSystem& fs, const Path& directory, std::string_view name,
                      const std::string& text) {
  const auto file = fs.create(directory / name);
  file->append(text);
  file->sync();
  file->close();
  return {.file = std::string(name), .nbytes = text.size(), .sha256 = to_hex(sha256(text))};
}

// Everything into `directory`, on stable storage with its names.
std::size_t write_files(FileSystem& fs, const Path& directory, const CheckpointState& state,
                        std::size_t shard_bytes) {
  CheckpointManifest manifest{
      .step = state.trainer.n_steps(), .tensors = {}, .state = {}, .model_config = {}};
  const std::span<const NamedTensor> tensors(state.trainer.tensors);
  const std::vector<Shard> shards = shards_of(tensors, shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        fmt::format("tensors-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    manifest.tensors.push_back(write_shard(
        fs, directory, name, tensors.subspan(shards[i].begin, shards[i].end - shards[i].begin)));
  }
  manifest.state = write_text(fs, directory, kCheckpointStateName, to_json(state));
  manifest.model_config =
      write_text(fs, directory, kCheckpointConfigName, model::to_json(state.model));
  // Last: a directory without it is none.
  static_cast<void>(write_text(fs, directory, kCheckpointManifestName, to_json(manifest)));
  fs.sync_directory(directory);
  std::size_t nbytes = 0;
  for (const FileDigest& file : manifest.files()) nbytes += file.nbytes;
  return nbytes;
}

void expect_room(FileSystem& fs, const Path& directory, const CheckpointState& state) {
  std::uint64_t needed = std::uint64_t{1} << 16;  // headers, state and manifest, roughly
  for (const NamedTensor& t : state.trainer.tensors) needed += t.tensor.nbytes();
  const std::uint64_t free = fs.free_space(directory);
  if (free >= needed) return;
  throw Error(ErrorCode::io,
              fmt::format("it takes {}, and the disk of {} has {} left",
                          format_bytes(static_cast<double>(needed)), directory.string(),
                          format_bytes(static_cast<double>(free))));
}

void put_in_place(FileSystem& fs, const Path& partial, const Path& target) {
  const Path replaced = target.string() + std::string(kReplacedSuffix);
  if (!fs.exists(target)) {
    fs.rename(partial, target);
    if (fs.exists(replaced)) fs.remove_all(replaced);
    return;
  }
  // Two renames; whoever looks in between finds the old one under its second name.
  fs.remove_all(replaced);
  fs.rename(target, replaced);
  try {
    fs.rename(partial, target);
  } catch (const Error&) {
    fs.rename(replaced, target);
    throw;
  }
  fs.remove_all(replaced);
}

// First it stops being a checkpoint, all at once; then its files go.
void remove_checkpoint(FileSystem& fs, const Path& path) {
  const Path partial = path.string() + std::string(kPartialSuffix);
  fs.remove_all(partial);
  fs.rename(path, partial);
  fs.remove_all(partial);
}

struct Candidate {
  CheckpointName name;
  Path path;
};

// Oldest first; of one step, the replaced one before its successor.
std::vector<Candidate> candidates(FileSystem& fs, const Path& directory) {
  std::vector<Candidate> found;
  if (!fs.exists(directory)) return found;
  for (const FileSystem::Entry& entry : fs.list(directory)) {
    if (!entry.is_directory) continue;
    if (const auto name = parse_checkpoint_name(entry.name)) {
      found.push_back({*name, directory / entry.name});
    }
  }
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    return std::pair(a.name.step, !a.name.replaced) < std::pair(b.name.step, !b.name.replaced);
  });
  return found;
}

void remove_leftovers(FileSystem& fs, const Path& directory) {
  for (const FileSystem::Entry& entry : fs.list(directory)) {
    if (entry.is_directory && entry.name.starts_with(kPrefix) &&
        entry.name.ends_with(kPartialSuffix)) {
      fs.remove_all(directory / entry.name);
    }
  }
}

void prune(FileSystem& fs, const Path& directory, const SaveOptions& options, SaveReport& report) {
  if (options.keep <= 0) return;
  std::vector<Candidate> all = candidates(fs, directory);
  std::int64_t n_newer = 0, last_step = -1;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    const std::int64_t step = it->name.step;
    n_newer += step != last_step ? 1 : 0;
    last_step = step;
    if (n_newer <= options.keep) continue;
    if (options.keep_every > 0 && step % options.keep_every == 0) continue;
    try {
      remove_checkpoint(fs, it->path);
      ++report.n_removed;
    } catch (const Error& e) {
      report.warnings.push_back(
          fmt::format("an old checkpoint stays: {}; remove it by hand", e.what()));
    }
  }
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

std::optional<CheckpointName> parse_checkpoint_name(std::string_view name) {
  CheckpointName parsed{.step = 0, .replaced = name.ends_with(kReplacedSuffix)};
  if (parsed.replaced) name.remove_suffix(kReplacedSuffix.size());
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kPrefix.size());
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), parsed.step);
  if (error != std::errc() || name != checkpoint_name(parsed.step)) return std::nullopt;
  return parsed;
}

SaveReport save_checkpoint(FileSystem& fs, const Path& directory, const CheckpointState& state,
                           const SaveOptions& options) {
  const std::int64_t step = state.trainer.n_steps();
  SaveReport report{
      .directory = directory / checkpoint_name(step), .nbytes = 0, .n_removed = 0, .warnings = {}};
  const Path partial = report.directory.string() + std::string(kPartialSuffix);
  try {
    fs.create_directories(directory);
    remove_leftovers(fs, directory);
    expect_room(fs, directory, state);
    fs.create_directories(partial);
    report.nbytes = write_files(fs, partial, state, options.shard_bytes);
    put_in_place(fs, partial, report.directory);
  } catch (const Error& e) {
    try {
      fs.remove_all(partial);
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch)
      // The reason is on its way to the user; this one is a consequence.
    }
    throw Error(e.code, fmt::format("the checkpoint of step {} is not saved: {}; earlier ones are "
                                    "as they were",
                                    step, e.what()));
  }
  prune(fs, directory, options, report);
  return report;
}

std::vector<std::int64_t> checkpoint_steps(FileSystem& fs, const Path& directory) {
  std::vector<std::int64_t> steps;
  for (const Candidate& c : candidates(fs, directory)) {
    if (steps.empty() || steps.back() != c.name.step) steps.push_back(c.name.step);
  }
  return steps;
}

std::optional<SavedCheckpoint> latest_checkpoint(FileSystem& fs, const Path& directory,
                                                 const Warn& warn,
                                                 std::optional<std::int64_t> max_step) {
  const std::vector<Candidate> all = candidates(fs, directory);
  std::int64_t n_damaged = 0;
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (max_step && it->name.step > *max_step) continue;
    try {
      SavedCheckpoint saved = SavedCheckpoint::open(fs, it->path);
      if (saved.step() == it->name.step) return saved;
      throw Error(ErrorCode::corrupt_data, fmt::format("{} holds the checkpoint of step {}",
                                                       it->path.string(), saved.step()));
    } catch (const Error& e) {
      if (e.code == ErrorCode::unsupported) throw;
      ++n_damaged;
      warn(fmt::format("{}; this checkpoint is skipped for the one before", e.what()));
    }
  }
  if (n_damaged == 0) return std::nullopt;
  throw Error(ErrorCode::corrupt_data,
              fmt::format("{}: none of {} checkpoint{} is whole; restore one from a copy, or begin "
                          "another run",
                          directory.string(), n_damaged, n_damaged == 1 ? "" : "s"));
}

std::int64_t remove_checkpoints_after(FileSystem& fs, const Path& directory, std::int64_t step) {
  std::int64_t n = 0;
  for (const Candidate& c : candidates(fs, directory)) {
    if (c.name.step <= step) continue;
    remove_checkpoint(fs, c.path);
    ++n;
  }
  return n;
}

}  // namespace hadal::train
