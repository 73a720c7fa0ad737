// What a run will need, before it needs it.
#pragma once

#include <string>
#include <vector>

#include "core/cuda/queue.h"
#include "train/run_config.h"

namespace hadal::train {

struct MemoryPlan {
  std::size_t weights = 0;  // f32 masters
  std::size_t gradients = 0;
  std::size_t optimizer = 0;    // momentum and moments
  std::size_t working = 0;      // stored forms of the weights beside the masters
  std::size_t snapshots = 0;    // copies to roll back to
  std::size_t activations = 0;  // the most that one forward and backward pass holds
  std::string widest;           // the stage that needs most, for people

  [[nodiscard]] std::size_t state() const {
    return weights + gradients + optimizer + working + snapshots;
  }
  [[nodiscard]] std::size_t total() const { return state() + activations; }
};

// Activations are counted by running a step of every stage with kernels that do nothing: every
// allocation happens, no arithmetic does. Takes memory for one pass at a time while it runs, and
// none for weights. Scratch memory of kernels is not counted. The same on every device.
// Throws Error out_of_memory when not even that fits.
[[nodiscard]] MemoryPlan plan_memory(const RunConfig& config, ThreadPool& pool);

// A few lines: what takes how much, and, of a GPU, how much there is.
[[nodiscard]] std::string to_string(const MemoryPlan& plan, const cuda::DeviceInfo* gpu = nullptr);

}  // namespace hadal::train
