// engine: generations. It speaks tokens and logits; prompts, tools and JSON are protocol's.
#pragma once

#include <memory>
#include <optional>

#include "io/tokenizer.h"
#include "model/model.h"

namespace hadal::engine {

struct LoadOptions {
  bool check_finite = false;  // read every weight and refuse NaN and infinity
};

// A checkpoint directory, ready to run. Weights stay in the page cache: loading maps files.
struct LoadedModel {
  Path directory;
  model::Config config;
  model::BoundWeights weights;
  model::Model model;
  std::optional<io::Tokenizer> tokenizer;  // when the directory has a tokenizer.json

  // Throws not_found, naming the file, when there is none.
  [[nodiscard]] const io::Tokenizer& require_tokenizer() const;
};

// Throws Error as load_config, Checkpoint::open, BoundWeights::bind and Tokenizer::load do; also
// when the tokenizer has ids that the embedding lacks.
[[nodiscard]] std::unique_ptr<LoadedModel> load_model(const Path& directory,
                                                      const LoadOptions& options = {});

}  // namespace hadal::engine
