// Dot products in every format, beside the peak measured on this machine. Shapes are those of
// V4-Flash: an expert [2048, 4096], a query projection [4096, 1024].
#include "kernels/cpu/dot_bench.h"

#include <benchmark/benchmark.h>

#include <vector>

namespace hadal::kernels::cpu {
namespace {

ThreadPool& pool() {
  static ThreadPool all_cores;
  return all_cores;
}

const MachinePeak& peak() {
  static const MachinePeak measured = measure_machine_peak(pool());
  return measured;
}

// One activation row takes a new matrix every time, so that weights come from memory; with more
// rows it is arithmetic that limits, and one matrix will do.
void dot(benchmark::State& state, DType dtype) {
  const std::int64_t n_x = state.range(0), rows = state.range(1), cols = state.range(2);
  constexpr std::size_t kOutOfCacheBytes = std::size_t{272} << 20;
  std::vector<QuantTensor> matrices;
  std::size_t nbytes = 0;
  do {
    matrices.push_back(arbitrary_weights(dtype, rows, cols, matrices.size()));
    nbytes += matrices.back().nbytes();
  } while (n_x == 1 && nbytes < kOutOfCacheBytes);
  const bool quantised = dtype == DType::f8_e4m3 || dtype == DType::f4_e2m1;
  const DType x_dtype = dtype == DType::f32 ? DType::f32 : DType::bf16;
  const Tensor x = arbitrary_activations(x_dtype, n_x, cols, 1);
  const Tensor y = Tensor::empty({n_x, rows}, DType::f32);
  ActivationPanel panel;
  std::size_t i = 0;
  for (auto _ : state) {
    const WeightRows w = rows_of(matrices[i++ % matrices.size()]);
    panel.prepare(pool(), x, w, quantised ? ActivationQuant::fp8_block128 : ActivationQuant::none);
    dot_all(pool(), panel, w, y.data<float>(), rows);
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  const double bytes = static_cast<double>(matrices.front().nbytes());
  const double flops = 2.0 * static_cast<double>(n_x) * static_cast<double>(rows * cols);
  const auto per_second = [&](double amount) {
    return Counter(amount, Counter::kIsIterationInvariantRate);
  };
  state.counters["GB/s"] = per_second(1e-9 * bytes);
  state.counters["GFLOP/s"] = per_second(1e-9 * flops);
  const bool pairs = dtype != DType::f32 && peak().bf16_gflop_per_s > 0;
  const double flop_peak = pairs ? peak().bf16_gflop_per_s : peak().f32_gflop_per_s;
  state.counters["of_peak"] =
      per_second(n_x == 1 ? 1e-9 * bytes / peak().read_gb_per_s : 1e-9 * flops / flop_peak);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"x_rows", "rows", "cols"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (const std::int64_t n_x : {1, 2, 4, 8, 64, 512}) b->Args({n_x, 2048, 4096});
  b->Args({1, 4096, 1024})->Args({512, 4096, 1024});
}

BENCHMARK_CAPTURE(dot, f4, DType::f4_e2m1)->Apply(shapes);
BENCHMARK_CAPTURE(dot, f8, DType::f8_e4m3)->Apply(shapes);
BENCHMARK_CAPTURE(dot, bf16, DType::bf16)->Apply(shapes);
BENCHMARK_CAPTURE(dot, f32, DType::f32)->Apply(shapes);

// What a linear does before it multiplies.
void prepare(benchmark::State& state, DType w_dtype, ActivationQuant quant) {
  const std::int64_t n_x = state.range(0), cols = 4096;
  const QuantTensor w = arbitrary_weights(w_dtype, 1, cols, 1);
  const Tensor x = arbitrary_activations(DType::bf16, n_x, cols, 1);
  ActivationPanel panel;
  for (auto _ : state) {
    panel.prepare(pool(), x, rows_of(w), quant);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * n_x * cols);
}

BENCHMARK_CAPTURE(prepare, f4_in_fp8, DType::f4_e2m1, ActivationQuant::fp8_block128)
    ->ArgName("x_rows")
    ->Arg(1)
    ->Arg(512)
    ->UseRealTime();
BENCHMARK_CAPTURE(prepare, bf16, DType::bf16, ActivationQuant::none)
    ->ArgName("x_rows")
    ->Arg(1)
    ->Arg(512)
    ->UseRealTime();

}  // namespace
}  // namespace hadal::kernels::cpu
