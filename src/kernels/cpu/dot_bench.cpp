#include "kernels/cpu/dot_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace hadal::kernels::cpu {

namespace {

constexpr std::int64_t kRows = 2048, kCols = 4096;  // an expert of V4-Flash
constexpr std::int64_t kGemmRows = 512;
constexpr std::size_t kOutOfCacheBytes = std::size_t{272} << 20;

// splitmix64: only speed and spread matter here.
std::uint64_t next(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void fill_bytes(const Tensor& t, std::uint64_t seed) {
  for (std::size_t i = 0; i < t.nbytes(); i += 8) {
    const std::uint64_t word = next(seed);
    std::memcpy(t.bytes() + i, &word, std::min<std::size_t>(8, t.nbytes() - i));
  }
}

template <class Fn>
double median_seconds(int runs, Fn&& fn) {
  fn();  // pages, caches, clocks
  std::vector<double> seconds;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[static_cast<std::size_t>(runs / 2)];
}

std::string shape_name(std::int64_t n_x) {
  return fmt::format("{} x {} x {}", n_x, kRows, kCols);
}

// Published FP8 and FP4 linears round their activations; the others take them as they are.
ActivationQuant quant_for(DType w) {
  return w == DType::f8_e4m3 || w == DType::f4_e2m1 ? ActivationQuant::fp8_block128
                                                    : ActivationQuant::none;
}

const char* short_name(DType dtype) {
  switch (dtype) {
    case DType::f8_e4m3:
      return "f8";
    case DType::f4_e2m1:
      return "f4";
    default:
      return to_string(dtype);
  }
}

KernelSpeed measure_gemv(ThreadPool& pool, const MachinePeak& peak, DType dtype, int runs) {
  std::vector<QuantTensor> matrices;
  std::size_t nbytes = 0;
  while (nbytes < kOutOfCacheBytes) {
    matrices.push_back(arbitrary_weights(dtype, kRows, kCols, matrices.size()));
    nbytes += matrices.back().nbytes();
  }
  const Tensor x = arbitrary_activations(DType::bf16, 1, kCols, 1);
  ActivationPanel panel;
  panel.prepare(pool, x, rows_of(matrices.front()), quant_for(dtype));
  std::vector<float> y(kRows);
  const double seconds = median_seconds(runs, [&] {
    for (const QuantTensor& w : matrices) dot_all(pool, panel, rows_of(w), y.data(), kRows);
  });
  const double flops = 2.0 * static_cast<double>(matrices.size()) * kRows * kCols;
  KernelSpeed speed{.kernel = fmt::format("gemv {}", short_name(dtype)),
                    .shape = shape_name(1),
                    .ms = 1e3 * seconds / static_cast<double>(matrices.size()),
                    .gb_per_s = 1e-9 * static_cast<double>(nbytes) / seconds,
                    .gflop_per_s = 1e-9 * flops / seconds,
                    .bound = "memory"};
  speed.share_of_bound = speed.gb_per_s / peak.read_gb_per_s;
  return speed;
}

KernelSpeed measure_gemm(ThreadPool& pool, const MachinePeak& peak, DType dtype, int runs) {
  const QuantTensor w = arbitrary_weights(dtype, kRows, kCols, 1);
  const DType x_dtype = dtype == DType::f32 ? DType::f32 : DType::bf16;
  const Tensor x = arbitrary_activations(x_dtype, kGemmRows, kCols, 1);
  const Tensor y = Tensor::empty({kGemmRows, kRows}, DType::f32);
  ActivationPanel panel;
  const double seconds = median_seconds(runs, [&] {
    panel.prepare(pool, x, rows_of(w), quant_for(dtype));
    dot_all(pool, panel, rows_of(w), y.data<float>(), kRows);
  });
  const bool pairs = peak.bf16_gflop_per_s > 0 && dtype != DType::f32;
  KernelSpeed speed{
      .kernel = fmt::format("gemm {}", short_name(dtype)),
      .shape = shape_name(kGemmRows),
      .ms = 1e3 * seconds,
      .gb_per_s = 1e-9 * static_cast<double>(w.nbytes() + x.nbytes() + y.nbytes()) / seconds,
      .gflop_per_s = 2e-9 * kGemmRows * kRows * kCols / seconds,
      .bound = pairs ? "bf16" : "f32"};
  speed.share_of_bound = speed.gflop_per_s / (pairs ? peak.bf16_gflop_per_s : peak.f32_gflop_per_s);
  return speed;
}

}  // namespace

QuantTensor arbitrary_weights(DType dtype, std::int64_t rows, std::int64_t cols,
                              std::uint64_t seed) {
  QuantTensor w{Tensor::empty({rows, cols}, dtype), {}, {}};
  fill_bytes(w.data, seed);
  switch (dtype) {
    case DType::f4_e2m1:
      w.block = kFp4Block;
      break;
    case DType::f8_e4m3:
      w.block = kFp8Block;
      for (std::size_t i = 0; i < w.data.nbytes(); ++i) w.data.bytes()[i] &= std::byte{0xf7};
      break;
    default: {
      // Sign and mantissa as they came, magnitudes in [1, 2).
      const std::size_t top = dtype == DType::f32 ? 3 : 1, size = top + 1;
      for (std::size_t i = 0; i < w.data.nbytes(); i += size) {
        w.data.bytes()[i + top] = (w.data.bytes()[i + top] & std::byte{0x80}) | std::byte{0x3f};
        w.data.bytes()[i + top - 1] |= std::byte{0x80};
      }
      return w;
    }
  }
  w.scale = Tensor::empty(
      {(rows + w.block.rows - 1) / w.block.rows, (cols + w.block.cols - 1) / w.block.cols},
      DType::ue8m0);
  for (std::size_t i = 0; i < w.scale.nbytes(); ++i) {
    w.scale.data<ue8m0>()[i] = {static_cast<std::uint8_t>(116 + next(seed) % 8)};
  }
  return w;
}

Tensor arbitrary_activations(DType dtype, std::int64_t rows, std::int64_t cols,
                             std::uint64_t seed) {
  Tensor x = Tensor::empty({rows, cols}, dtype);
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const float v = static_cast<float>(static_cast<std::int64_t>(next(seed) >> 40) - (1 << 23)) *
                    0x1p-22f;  // [-2, 2)
    if (dtype == DType::f32)
      x.data<float>()[i] = v;
    else
      x.data<bf16>()[i] = to_bf16(v);
  }
  return x;
}

std::vector<KernelSpeed> measure_dot_kernels(ThreadPool& pool, bool quick) {
  const MachinePeak peak = measure_machine_peak(pool);
  const int runs = quick ? 3 : 9;
  std::vector<KernelSpeed> speeds;
  speeds.push_back({.kernel = "peak read",
                    .shape = "",
                    .gb_per_s = peak.read_gb_per_s,
                    .share_of_bound = 1,
                    .bound = "memory"});
  speeds.push_back({.kernel = "peak f32",
                    .shape = "",
                    .gflop_per_s = peak.f32_gflop_per_s,
                    .share_of_bound = 1,
                    .bound = "f32"});
  if (peak.bf16_gflop_per_s > 0) {
    speeds.push_back({.kernel = "peak bf16",
                      .shape = "",
                      .gflop_per_s = peak.bf16_gflop_per_s,
                      .share_of_bound = 1,
                      .bound = "bf16"});
  }
  for (const DType dtype : {DType::f4_e2m1, DType::f8_e4m3, DType::bf16}) {
    speeds.push_back(measure_gemv(pool, peak, dtype, runs));
  }
  for (const DType dtype : {DType::f4_e2m1, DType::f8_e4m3, DType::bf16, DType::f32}) {
    speeds.push_back(measure_gemm(pool, peak, dtype, runs));
  }
  return speeds;
}

}  // namespace hadal::kernels::cpu
