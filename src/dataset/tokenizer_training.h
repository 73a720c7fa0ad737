// Learns a tokenizer from the same sources that data is built of.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/file.h"
#include "io/bpe_trainer.h"

namespace hadal::dataset {

struct TokenizerTrainingOptions {
  std::vector<Path> inputs;
  std::vector<std::string> text_extensions = {"txt", "md"};
  std::int64_t vocab_size = 0;       // ids, control tokens among them
  std::uint64_t max_text_bytes = 0;  // documents in order until there is this much; 0: all
  io::BpeTrainerOptions bpe{};       // n_tokens is set from vocab_size
  int n_threads = 0;                 // 0: every core; the result does not depend on it
};

struct TokenizerTraining {
  std::string tokenizer_json;
  std::int64_t vocab_size = 0;  // less than wanted where the text has no more pairs to merge
  std::size_t n_merges = 0, n_pieces = 0;
  std::uint64_t text_bytes = 0;
};

// Told how far a part of the work is; throws what is to stop it.
enum class TrainingPhase : std::uint8_t { reading, merging };
using TrainingProgress =
    std::function<void(TrainingPhase phase, std::size_t done, std::size_t total)>;

// Throws Error: invalid_argument for a vocabulary too small for the bytes and the control tokens,
// or without any text; as DocumentReader and DocumentEncoder for input that cannot be read.
[[nodiscard]] TokenizerTraining train_tokenizer(const TokenizerTrainingOptions& options,
                                                const TrainingProgress& progress = {});

}  // namespace hadal::dataset
