// What this machine can do, measured: the bounds that kernel speeds are compared with.
#pragma once

#include "core/thread_pool.h"

namespace hadal::kernels::cpu {

struct MachinePeak {
  double read_gb_per_s = 0;     // all threads reading memory that no cache holds
  double f32_gflop_per_s = 0;   // fused multiply-adds of the active instruction set, two flops each
  double bf16_gflop_per_s = 0;  // dot products of bf16 pairs; 0 where the active set has none
};

// Takes about half a second and 256 MiB. The best of many short runs: other load on the machine can
// only make them slower.
[[nodiscard]] MachinePeak measure_machine_peak(ThreadPool& pool);

}  // namespace hadal::kernels::cpu
