// Options of whatever writes a model directory.
#pragma once

#include <string>

#include "cli/common.h"
#include "model/convert.h"

namespace hadal::cli {

struct ModelOutputOptions {
  std::string format = "published", shard_size = "4GiB";
  bool force = false;

  [[nodiscard]] model::WeightFormat weight_format() const;
  [[nodiscard]] io::CheckpointWriterOptions writer_options() const;
};
void add_model_output_options(CLI::App& app, ModelOutputOptions& options);

}  // namespace hadal::cli
