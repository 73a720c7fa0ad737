// engine: generations. It speaks tokens and logits; prompts, tools and JSON are protocol's.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "io/tokenizer.h"
#include "model/model.h"

namespace hadal::engine {

struct LoadOptions {
  bool check_finite = false;  // read every weight and refuse NaN and infinity
  // Where the model will run; null, or a stream of the CPU, leaves the weights in the page cache.
  // A GPU's takes copies of them, and must outlive the model.
  const Stream* stream = nullptr;
  std::function<void(std::size_t done, std::size_t total)> progress = {};  // of copying, in bytes
};

// A checkpoint directory, ready to run. On the CPU weights stay in the page cache: loading maps
// files.
struct LoadedModel {
  Path directory;
  model::Config config;
  model::BoundWeights weights;  // as the files have them
  model::Model model;
  std::optional<io::Tokenizer> tokenizer;  // when the directory has a tokenizer.json

  // Throws not_found, naming the file, when there is none.
  [[nodiscard]] const io::Tokenizer& require_tokenizer() const;
};

// Throws Error as load_config, Checkpoint::open, BoundWeights::bind and Tokenizer::load do; also
// when the tokenizer has ids that the embedding lacks.
[[nodiscard]] std::unique_ptr<LoadedModel> load_model(const Path& directory,
                                                      const LoadOptions& options = {});

// A model of this config with random weights (model/synthesize.h), for timing where there are none:
// in memory, with no file, no tokenizer and no directory.
[[nodiscard]] std::unique_ptr<LoadedModel> synthetic_model(model::Config config, std::uint64_t seed,
                                                           const LoadOptions& options = {});

}  // namespace hadal::engine
