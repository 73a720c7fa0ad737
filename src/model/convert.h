// A checkpoint in one storage format made from a checkpoint in another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/thread_pool.h"
#include "io/checkpoint_writer.h"
#include "model/weight_layout.h"

namespace hadal::model {

// Bytes done of bytes to do; called often, from the calling thread, and never once the result is
// in place. What it throws ends the work, which then leaves nothing behind.
using ConvertProgress = std::function<void(std::size_t done, std::size_t total)>;

struct ConvertOptions {
  WeightFormat format = WeightFormat::published;
  io::CheckpointWriterOptions output;
};

// Tensors that were treated alike.
struct ConvertedKind {
  std::string what;  // "expert fp4", "linear fp8", "matrix kept", ...
  std::int64_t n_tensors = 0;
  std::size_t bytes_before = 0, bytes_after = 0;  // scales included
  // |written - read| / |read| over all their values, Euclidean norms; 0 where nothing was rounded.
  double relative_error = 0;
};

struct ConversionReport {
  std::vector<ConvertedKind> kinds;
  std::size_t bytes_before = 0, bytes_after = 0;
  std::size_t n_shards = 0;
  std::vector<std::string> notes;  // what stayed in another format and why, what was left out
};

// Reads the checkpoint directory `from` in any format that BoundWeights binds and writes the
// directory `to`: linears, experts and the rest as `options.format` stores them. What is in its
// target format already is copied, matrices and norms keep their type except in format bf16 and
// f32, f32_only tensors and tid2eid are written as f32 and i64. A weight whose columns FP4 cannot
// hold is stored as bf16, with a note. config.json says what was done; the tokenizer's files and
// generation_config.json are copied. Names become the official ones.
//
// Every value is checked before anything is written. Throws Error: what load_config and
// BoundWeights::bind throw, corrupt_data on NaN or infinity, invalid_argument when `to` is `from`
// or may not be replaced, and what `fs` throws. After an error nothing is left under `to` or beside
// it.
[[nodiscard]] ConversionReport convert_checkpoint(FileSystem& fs, ThreadPool& pool,
                                                  const Path& from, const Path& to,
                                                  const ConvertOptions& options,
                                                  const ConvertProgress& progress = nullptr);

[[nodiscard]] const char* to_string(WeightFormat format);  // "published", "fp8", "bf16", "f32"

}  // namespace hadal::model
