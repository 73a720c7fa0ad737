// How fast the dot products are here, beside what the machine allows; for `hadal bench kernels`
// and the benchmark programs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/machine_peak.h"

namespace hadal::kernels::cpu {

struct KernelSpeed {
  std::string kernel;   // "gemv f4", "gemm bf16", ...; the first rows are the machine's own peaks
  std::string shape;    // "1 x 2048 x 4096": activation rows, weight rows, columns
  double ms = 0;        // of one product, the median of several runs
  double gb_per_s = 0;  // weights and their scales, and the activations and results of a gemm
  double gflop_per_s = 0;     // two for each weight and activation row
  double share_of_bound = 0;  // of the measured peak named below; 1 is all of it
  std::string bound;          // "memory", "f32", "bf16"
};

// Measures on all threads of the pool, on the active instruction set: products of one row with
// matrices that no cache holds (more than 256 MiB in all), and of 512 rows with one matrix.
// `quick` runs each thing fewer times. Takes some seconds and 300 MiB.
[[nodiscard]] std::vector<KernelSpeed> measure_dot_kernels(ThreadPool& pool, bool quick);

// Weights of arbitrary finite values in a format, f8 and f4 with ue8m0 scales of the published
// blocks: what the kernels are timed with.
[[nodiscard]] QuantTensor arbitrary_weights(DType dtype, std::int64_t rows, std::int64_t cols,
                                            std::uint64_t seed);
[[nodiscard]] Tensor arbitrary_activations(DType dtype, std::int64_t rows, std::int64_t cols,
                                           std::uint64_t seed);

}  // namespace hadal::kernels::cpu
