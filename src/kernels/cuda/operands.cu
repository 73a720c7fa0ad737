// Widening: one thread for eight neighbouring values of a row. A warp rounds one block of 128
// activations, four values a lane.
#include "kernels/cuda/operands.h"

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/reduce.cuh"

namespace hadal::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

struct WidenJob {
  const void* data;
  const void* scale;
  void* out;
};
// What all weights of a launch have in common.
struct WeightFormat {
  DType dtype, scale_dtype;
  std::int32_t block_rows, block_cols, scale_cols;
  std::int64_t cols, n_pieces;  // pieces of kPerThread columns
  std::int64_t pieces_per_row;
};

__device__ float stored_value(const WidenJob& job, const WeightFormat& f, std::int64_t at) {
  switch (f.dtype) {
    case DType::f32:
      return static_cast<const float*>(job.data)[at];
    case DType::bf16:
      return load(static_cast<const __nv_bfloat16*>(job.data)[at]);
    case DType::f8_e4m3:
      return e4m3_to_float(static_cast<const std::uint8_t*>(job.data)[at]);
    default: {
      const std::uint32_t pair = static_cast<const std::uint8_t*>(job.data)[at / 2];
      return e2m1_to_float(at % 2 == 0 ? pair & 15u : pair >> 4);
    }
  }
}

template <class Out>
__global__ void __launch_bounds__(kThreads) widen_kernel(const WidenJob* jobs, WeightFormat f) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= f.n_pieces) return;
  const WidenJob job = jobs[blockIdx.y];
  const std::int64_t row = i / f.pieces_per_row;
  const std::int64_t begin = i % f.pieces_per_row * kPerThread;
  const bool whole = f.cols % kPerThread == 0;
  Out* out = static_cast<Out*>(job.out) + row * f.cols + begin;
  alignas(16) Out values[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t c = begin + j;
    if (!whole && c >= f.cols) continue;
    float scale = 1.0f;
    if (job.scale != nullptr) {
      const std::int64_t at = row / f.block_rows * f.scale_cols + c / f.block_cols;
      scale = f.scale_dtype == DType::f32
                  ? static_cast<const float*>(job.scale)[at]
                  : ue8m0_to_float(static_cast<const std::uint8_t*>(job.scale)[at]);
    }
    put(values[j], stored_value(job, f, row * f.cols + c) * scale);
    if (!whole) out[j] = values[j];
  }
  if (!whole) return;
  constexpr int kVectors = static_cast<int>(kPerThread * sizeof(Out) / sizeof(uint4));
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    reinterpret_cast<uint4*>(out)[v] = reinterpret_cast<const uint4*>(values)[v];
  }
}

// Eight values a thread, in 16-byte pieces where both sides start at a multiple of 16.
template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(Out* y, const In* x, std::int64_t n, bool aligned) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPerThread;
  if (aligned && i + kPerThread <= n) {
    constexpr int kIn = static_cast<int>(kPerThread * sizeof(In) / sizeof(uint4));
    constexpr int kOut = static_cast<int>(kPerThread * sizeof(Out) / sizeof(uint4));
    alignas(16) In from[kPerThread];
    alignas(16) Out to[kPerThread];
#pragma unroll
    for (int v = 0; v < kIn; ++v) {
      reinterpret_cast<uint4*>(from)[v] = reinterpret_cast<const uint4*>(x + i)[v];
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) put(to[j], load(from[j]));
#pragma unroll
    for (int v = 0; v < kOut; ++v) {
      reinterpret_cast<uint4*>(y + i)[v] = reinterpret_cast<const uint4*>(to)[v];
    }
    return;
  }
  for (std::int64_t j = i; j < n && j < i + kPerThread; ++j) put(y[j], load(x[j]));
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads)
    round_blocks_kernel(Out* y, const In* x, std::int64_t n_blocks, int blocks_per_row, int cols) {
  const std::int64_t block = std::int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (block >= n_blocks) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = block / blocks_per_row;
  const int begin = static_cast<int>(block % blocks_per_row) * static_cast<int>(kActQuantBlock);
  float v[4], amax = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int c = begin + lane + 32 * j;
    v[j] = c < cols ? load(x[row * cols + c]) : 0.0f;
    amax = fmaxf(amax, fabsf(v[j]));
  }
  amax = warp_max(amax);
  const int e = isfinite(amax) ? e4m3_scale_exponent(amax) : 0;
  const float scale = exp2_int(e), inverse = exp2_int(-e);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int c = begin + lane + 32 * j;
    if (c < cols) put(y[row * cols + c], e4m3_to_float(to_e4m3(v[j] * inverse)) * scale);
  }
}

template <class In, class Out>
void fill_rows(Stream& stream, const TensorView& x, ActivationQuant quant, void* out) {
  auto* y = static_cast<Out*>(out);
  const auto* from = data<const In>(x);
  if (quant == ActivationQuant::none) {
    launch(
        stream, "convert_rows", convert_kernel<In, Out>,
        {dim3(blocks_for(x.numel(), kThreads * kPerThread)), dim3(kThreads)}, y, from, x.numel(),
        (reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(y)) % 16 == 0);
    return;
  }
  const std::int64_t cols = x.dim(1), per_row = ceil_div(cols, kActQuantBlock);
  const std::int64_t n_blocks = x.dim(0) * per_row;
  launch(stream, "round_rows", round_blocks_kernel<In, Out>,
         {dim3(blocks_for(n_blocks, kThreads / 32)), dim3(kThreads)}, y, from, n_blocks,
         static_cast<int>(per_row), static_cast<int>(cols));
}

void check_wanted(DType wanted) {
  HADAL_CHECK(wanted == DType::bf16 || wanted == DType::f32);
}

}  // namespace

DType operand_type(DType activation, const QuantTensor& weight) {
  return activation == DType::bf16 && weight.data.dtype() != DType::f32 &&
                 suits_tensor_cores(weight.rows()) && suits_tensor_cores(weight.cols())
             ? DType::bf16
             : DType::f32;
}

std::vector<Operand> weight_operands(Stream& stream, std::span<const QuantTensor* const> weights,
                                     DType wanted) {
  check_wanted(wanted);
  std::vector<Operand> operands;
  if (weights.empty()) return operands;
  const QuantTensor& first = *weights.front();
  if (first.data.dtype() == wanted && !first.scale) {
    for (const QuantTensor* w : weights) operands.push_back({w->data.bytes(), w->data});
    return operands;
  }
  const std::int64_t item = wanted == DType::f32 ? 4 : 2;
  std::vector<WidenJob> jobs;
  for (const QuantTensor* w : weights) {
    HADAL_CHECK(w->data.shape() == first.data.shape() && w->data.dtype() == first.data.dtype() &&
                w->block == first.block && static_cast<bool>(w->scale) == bool(first.scale));
    Tensor held = stream.cuda().scratch(w->data.numel() * item);
    jobs.push_back({w->data.bytes(), w->scale ? w->scale.bytes() : nullptr, held.bytes()});
    operands.push_back({held.bytes(), held});
  }
  const std::int64_t rows = first.rows(), cols = first.cols();
  const std::int64_t per_row = ceil_div(cols, kPerThread);
  const WeightFormat format{
      .dtype = first.data.dtype(),
      .scale_dtype = first.scale ? first.scale.dtype() : DType::f32,
      .block_rows = static_cast<std::int32_t>(first.block.rows),
      .block_cols = static_cast<std::int32_t>(first.block.cols),
      .scale_cols = static_cast<std::int32_t>(ceil_div(cols, first.block.cols)),
      .cols = cols,
      .n_pieces = rows * per_row,
      .pieces_per_row = per_row};
  const WidenJob* staged = stream.cuda().stage(std::span<const WidenJob>(jobs));
  dispatch_activation(wanted, [&]<class Out>() {
    launch(stream, "widen_weights", widen_kernel<Out>,
           {dim3(blocks_for(rows * per_row, kThreads), static_cast<unsigned>(jobs.size())),
            dim3(kThreads)},
           staged, format);
  });
  return operands;
}

Operand weight_operand(Stream& stream, const QuantTensor& w, DType wanted) {
  const QuantTensor* const one = &w;
  return weight_operands(stream, std::span(&one, 1), wanted).front();
}

Operand rows_operand(Stream& stream, const TensorView& x, ActivationQuant quant, DType wanted) {
  check_wanted(wanted);
  if (x.dtype() == wanted && quant == ActivationQuant::none) return {x.bytes(), {}};
  Tensor held = stream.cuda().scratch(x.numel() * (wanted == DType::f32 ? 4 : 2));
  if (x.numel() > 0) {
    dispatch_activation(x.dtype(), [&]<class In>() {
      dispatch_activation(wanted,
                          [&]<class Out>() { fill_rows<In, Out>(stream, x, quant, held.bytes()); });
    });
  }
  return {held.bytes(), held};
}

}  // namespace hadal::kernels::cuda
