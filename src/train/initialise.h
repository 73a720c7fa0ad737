// The weights that training starts from.
#pragma once

#include <cstdint>
#include <span>

#include "train/parameters.h"

namespace hadal::train {

// min(0.02, 0.5 / sqrt(hidden_size)): 0.006 at the width of V3, which published that.
[[nodiscard]] double initial_deviation(const model::Config& config);

// Fills every value. Matrices are normal(0, initial_deviation); norms 1; sinks, ape and gate.bias
// 0; hyper-connections start near a plain residual network that reads the mean of its streams, with
// a small tilt so that streams part; hash tables are built from `token_counts` (build_hash_table).
// A tensor's bits follow from the seed and its id alone, on any number of threads and wherever the
// store is: they are made on the host.
// Source: training.md §2.9.
void initialise(ThreadPool& pool, const ParameterStore& store, std::uint64_t seed,
                std::span<const std::int64_t> token_counts = {});

}  // namespace hadal::train
