// What the files of Trainer share.
#pragma once

#include <chrono>

#include "train/trainer.h"

namespace hadal::train {

struct Trainer::Prepared {
  LoaderState before;  // of the loader, in front of this batch
  std::vector<MicroBatch> micro;
  std::vector<ExpertChoices> choices;  // by micro-batch; empty: the router's own
  std::vector<bool> chosen_layers;     // that `choices` is about; the same on all ranks
  // While a state is being restored: choices by layer, of one rank's tokens or of all ranks'. On
  // the host.
  std::vector<Tensor> joined;
  std::vector<std::int64_t> n_tokens;  // by rank
  // Of all ranks.
  std::int64_t n_inputs = 0, n_targets = 0, n_mtp_targets = 0, n_sequences = 0, n_index_rows = 0;
  double seconds = 0;
};

struct Trainer::Snapshot {
  TrainerState state;  // tensors copied, on the same device
  RunMemory memory;    // that has the copies
  std::size_t nbytes = 0;
};

struct Trainer::Accumulated {
  LossSums sums;
  double forward_seconds = 0, backward_seconds = 0;
};

[[nodiscard]] inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

[[nodiscard]] inline double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Rows where the sequences begin, and the end.
[[nodiscard]] inline std::vector<std::int64_t> sequence_bounds(const model::TokenBatch& tokens) {
  std::vector<std::int64_t> bounds{0};
  for (const model::TokenBatch::Sequence& s : tokens.sequences) bounds.push_back(s.end);
  return bounds;
}

}  // namespace hadal::train
