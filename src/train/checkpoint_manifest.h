// manifest.json of a training checkpoint: which files it has, and what is in them.
// Format: docs/formats/training_checkpoint.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "train/data_manifest.h"

namespace hadal::train {

struct CheckpointManifest {
  std::int64_t step = 0;
  std::vector<FileDigest> tensors;  // files of tensors, in order
  FileDigest state, model_config;   // state.json, config.json

  [[nodiscard]] std::vector<FileDigest> files() const;  // all of them
};

[[nodiscard]] std::string to_json(const CheckpointManifest& manifest);
// Throws Error corrupt_data for what is no such manifest, unsupported for a newer version; the
// sentence begins with `source`.
[[nodiscard]] CheckpointManifest parse_checkpoint_manifest(std::string_view json,
                                                           const std::string& source);

// Reads the file within `directory` and holds it against its digest. Throws Error: not_found,
// corrupt_data naming the file when it is cut short or changed.
[[nodiscard]] std::vector<std::byte> read_verified(FileSystem& fs, const Path& directory,
                                                   const FileDigest& digest);
// The same without keeping it.
void verify(FileSystem& fs, const Path& directory, const FileDigest& digest);

}  // namespace hadal::train
