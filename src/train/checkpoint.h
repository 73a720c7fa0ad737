// Training checkpoints: RUN/checkpoints/step-00001200/ holds f32 masters, the optimizers' states
// and every number that the next step depends on. What is loaded is what was saved, byte by byte.
// Format: docs/formats/training_checkpoint.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "train/checkpoint_manifest.h"
#include "train/checkpoint_state.h"

namespace hadal::train {

inline constexpr std::string_view kCheckpointsName = "checkpoints";  // within a run's directory

struct SaveOptions {
  std::int64_t keep = 3;                             // the newest ones; 0: all
  std::int64_t keep_every = 0;                       // and those of every so many steps; 0: none
  std::size_t shard_bytes = std::size_t{256} << 20;  // a larger tensor has a file of its own
};

struct SaveReport {
  Path directory;
  std::size_t nbytes = 0;
  std::int64_t n_removed = 0;         // older checkpoints
  std::vector<std::string> warnings;  // an older one that could not be removed
};

// Writes `state.trainer.n_steps()`'s directory within `directory` (RUN/checkpoints), which it makes
// if need be. It appears complete and on stable storage, or not at all: whatever ends the work, at
// any moment, earlier checkpoints stay as they are. One of the same step is replaced. Then removes
// the ones that `options` does not keep. One process at a time.
// Throws Error io (a full disk, say) with the step; what was written so far is removed.
SaveReport save_checkpoint(FileSystem& fs, const Path& directory, const CheckpointState& state,
                           const SaveOptions& options = {});

// A checkpoint whose every byte has been held against its manifest.
class SavedCheckpoint {
 public:
  // Reads all of it once. `fs` must outlive this. Throws Error: not_found or corrupt_data naming
  // the file that is missing, cut short or changed; unsupported for a newer version.
  [[nodiscard]] static SavedCheckpoint open(FileSystem& fs, const Path& directory);

  [[nodiscard]] const Path& directory() const { return directory_; }
  [[nodiscard]] std::int64_t step() const { return state_.trainer.n_steps(); }
  [[nodiscard]] const CheckpointState& state() const { return state_; }  // without tensors
  [[nodiscard]] std::size_t nbytes() const;

  // Throws Error invalid_argument saying what differs: key, found, wanted.
  void expect_identity(const RunIdentity& wanted) const;

  // Overwrites the bytes of all these tensors: exactly those the checkpoint has. Needs memory for
  // one file at a time. Throws Error corrupt_data naming a tensor that is missing, too many, or of
  // another shape or type; some may be overwritten by then.
  void read(std::span<const NamedTensor> tensors) const;
  // The masters alone.
  void read_weights(const ParameterStore& store) const;

 private:
  SavedCheckpoint(FileSystem& fs, Path directory) : fs_(&fs), directory_(std::move(directory)) {}
  enum class Others : std::uint8_t { ignore, refuse };
  void read(std::span<const NamedTensor> tensors, Others others) const;

  FileSystem* fs_;
  Path directory_;
  CheckpointManifest manifest_;
  CheckpointState state_;
};

using Warn = std::function<void(const std::string& sentence)>;

// Steps that have a directory in `directory`, oldest first; whole or not. Empty when there is no
// such directory.
[[nodiscard]] std::vector<std::int64_t> checkpoint_steps(FileSystem& fs, const Path& directory);

// The newest checkpoint that is whole, found by looking; of those up to `max_step` if given. Newer
// ones that are not are skipped with a warning that says which file is wrong. Nothing when there
// are none. Throws Error: corrupt_data when there are some and none is whole, unsupported for a
// newer version.
[[nodiscard]] std::optional<SavedCheckpoint> latest_checkpoint(
    FileSystem& fs, const Path& directory, const Warn& warn,
    std::optional<std::int64_t> max_step = std::nullopt);

// Takes back those of later steps, after a run went back to `step`: they belong to a path that was
// left. Returns their number.
std::int64_t remove_checkpoints_after(FileSystem& fs, const Path& directory, std::int64_t step);

}  // namespace hadal::train
