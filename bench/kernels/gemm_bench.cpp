// The products of a training step, and Newton-Schulz, beside the multiply-add peak measured on this
// machine. Shapes are those of the micro configuration: 8192 tokens, hidden 384, experts 256 wide
// that see 1024 tokens each.
#include "kernels/cpu/gemm.h"

#include <benchmark/benchmark.h>

#include <vector>

#include "core/tensor.h"
#include "kernels/cpu/machine_peak.h"
#include "kernels/newton_schulz.h"

namespace hadal::kernels::cpu {
namespace {

ThreadPool& pool() {
  static ThreadPool all_cores;
  return all_cores;
}

double peak_gflop_per_s() {
  static const double measured = measure_machine_peak(pool()).f32_gflop_per_s;
  return measured;
}

Tensor arbitrary(std::int64_t n) {
  Tensor t = Tensor::empty({n}, DType::f32);
  for (std::int64_t i = 0; i < n; ++i) {
    t.data<float>()[i] = static_cast<float>((i * 2654435761) % 1021 - 510) * 1e-3f;
  }
  return t;
}

void report(benchmark::State& state, double flops) {
  using benchmark::Counter;
  const auto per_second = [&](double amount) {
    return Counter(amount, Counter::kIsIterationInvariantRate);
  };
  state.counters["GFLOP/s"] = per_second(1e-9 * flops);
  state.counters["of_peak"] = per_second(1e-9 * flops / peak_gflop_per_s());
}

// c [rows, cols] = op(a) op(b) with a reduction over `depth`, `batch` times.
void products(benchmark::State& state, Transposed ta, Transposed tb) {
  const std::int64_t rows = state.range(0), cols = state.range(1), depth = state.range(2);
  std::vector<Tensor> memory;
  std::vector<GemmProblem> problems;
  const auto matrix = [&](std::int64_t r, std::int64_t c) -> MatrixView {
    return {memory.emplace_back(arbitrary(r * c)).data<float>(), r, c, c};
  };
  for (std::int64_t i = 0; i < state.range(3); ++i) {
    const MatrixView c = matrix(rows, cols);
    const MatrixView a = ta == Transposed::no ? matrix(rows, depth) : matrix(depth, rows);
    const MatrixView b = tb == Transposed::no ? matrix(depth, cols) : matrix(cols, depth);
    problems.push_back({c, a, b, ta, tb});
  }
  for (auto _ : state) {
    gemm_batch(pool(), problems);
    benchmark::ClobberMemory();
  }
  report(state, 2.0 * static_cast<double>(rows * cols * depth * state.range(3)));
}

void newton_schulz(benchmark::State& state) {
  const std::int64_t n = state.range(0), rows = state.range(1), cols = state.range(2);
  KernelRegistry registry;
  register_kernels(registry);
  Stream stream(pool());
  const auto kernel = registry.find(kNewtonSchulz, {DeviceKind::cpu, DType::f32});
  const Tensor x = arbitrary(n * rows * cols).reshape({n, rows, cols});
  const Tensor workspace = Tensor::empty({newton_schulz_workspace(n, rows, cols)}, DType::f32);
  // What was orthogonal stays so, so that the next run starts from usual numbers too.
  for (std::int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] *= 1e-2f;
  for (auto _ : state) {
    kernel(stream, {x, workspace, kHybridSchedule});
    benchmark::ClobberMemory();
  }
  // The products of the definition; a part of the symmetric ones is left out, so that the share of
  // the peak may pass 1.
  const auto a = static_cast<double>(rows), b = static_cast<double>(cols);
  report(state, 10.0 * static_cast<double>(n) * (4 * a * a * b + 2 * a * a * a));
}

void forward_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "cols", "depth", "batch"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  b->Args({8192, 192, 384, 1})->Args({8192, 768, 192, 1})->Args({8192, 1024, 384, 1});
  b->Args({8192, 24, 1536, 1})->Args({1024, 256, 384, 32})->Args({1024, 384, 256, 32});
}
void input_gradient_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "cols", "depth", "batch"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  b->Args({8192, 384, 192, 1})->Args({8192, 192, 768, 1})->Args({1024, 384, 256, 32});
}
void weight_gradient_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "cols", "depth", "batch"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  b->Args({192, 384, 8192, 1})->Args({768, 192, 8192, 1})->Args({24, 1536, 8192, 1});
  b->Args({256, 384, 1024, 32});
}

BENCHMARK_CAPTURE(products, forward, Transposed::no, Transposed::yes)->Apply(forward_shapes);
BENCHMARK_CAPTURE(products, input_gradient, Transposed::no, Transposed::no)
    ->Apply(input_gradient_shapes);
BENCHMARK_CAPTURE(products, weight_gradient, Transposed::yes, Transposed::no)
    ->Apply(weight_gradient_shapes);
BENCHMARK(newton_schulz)
    ->ArgNames({"matrices", "rows", "cols"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({32, 256, 384})
    ->Args({1, 192, 768})
    ->Args({1, 384, 384});

}  // namespace
}  // namespace hadal::kernels::cpu
