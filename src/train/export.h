// From a training checkpoint to a model that the engine loads, and Hugging Face's implementation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint_writer.h"
#include "model/convert.h"
#include "train/checkpoint.h"

namespace hadal::train {

// `path` is a run's directory, its directory of checkpoints, or one checkpoint: the newest whole
// one, or that of `step`. Throws Error: not_found when there is none, what
// SavedCheckpoint::open throws.
[[nodiscard]] SavedCheckpoint find_checkpoint(FileSystem& fs, const Path& path,
                                              std::optional<std::int64_t> step, const Warn& warn);

struct ExportOptions {
  model::WeightFormat format = model::WeightFormat::published;
  io::CheckpointWriterOptions output;
  Path tokenizer;  // a directory with a tokenizer.json; empty: none is written
};

struct ExportReport {
  std::int64_t n_lifted = 0;  // FP4 tiles whose scale was raised to stay exact in FP8
  std::size_t nbytes = 0;     // of tensors
  std::size_t n_shards = 0;
  std::vector<std::string> notes;
};

// Writes the directory `to`: the weights as `options.format` stores them, rounded as the trainer
// rounds them (WorkingWeights), config.json, generation_config.json and the tokenizer's files. The
// optimizers' states stay behind. Needs memory for the masters and their stored form.
// Throws Error: invalid_argument when the format cannot hold the model, or as io::CheckpointWriter;
// not_found when there is no tokenizer where one should be; corrupt_data naming a weight that is
// not finite; what `fs` throws. After an error nothing is left under `to` or beside it.
[[nodiscard]] ExportReport export_checkpoint(FileSystem& fs, ThreadPool& pool,
                                             const SavedCheckpoint& from, const Path& to,
                                             const ExportOptions& options,
                                             const model::ConvertProgress& progress = nullptr);

}  // namespace hadal::train
