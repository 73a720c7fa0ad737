// What a training run is made of between two steps.
#pragma once

#include <cstdint>
#include <vector>

#include "train/data_loader.h"
#include "train/parameters.h"
#include "train/schedule.h"
#include "train/spike_detector.h"

namespace hadal::train {

// Everything that the next step depends on, besides the config and the data. Tensors share the
// trainer's storage: reading them saves, assigning to them restores.
struct TrainerState {
  Progress progress;
  LoaderState loader;
  SpikeDetector::State spikes;
  std::int64_t anticipatory_steps = 0;  // that it still stays on
  std::int64_t choices_ahead = 0;       // batches behind `loader` whose experts are chosen already
  bool in_warmup = false;               // the indexer's optimizer has a state of its own
  std::vector<NamedTensor> tensors;     // masters under their official names, then the rest

  // Of the optimizer, the indexer's warm-up counted.
  [[nodiscard]] std::int64_t n_steps() const { return progress.step + progress.indexer_steps; }
};

}  // namespace hadal::train
